// Package joulegate is the root of the module; the program is in
// cmd/joulegate. It holds no code: its test enforces the architecture that
// ARCHITECTURE.md describes.
package joulegate
