package main

// usageError is a command line that asks for something that cannot be: wrong
// flags or arguments. The program then exits with 2 instead of 1.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
