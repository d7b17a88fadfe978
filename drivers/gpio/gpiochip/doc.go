// Package gpiochip reaches real pins through Linux's GPIO character devices,
// version 2 of their interface (Linux 5.10, include/uapi/linux/gpio.h).
//
// A chip is a device file, /dev/gpiochipN, with a label that says what it is
// and lines that are numbered by their offset and may have a name. A line is
// asked for with one ioctl; the kernel answers with a file that stands for the
// line, and frees the line when that file is closed:
//
//	/dev/gpiochip0 ──GET_LINE{offset, direction, level, bias, consumer}──► line
//	 "pinctrl-bcm2835"                                  line ──SET_VALUES──► level
//	                                                    line ──GET_VALUES──► level
//
// # What a relay needs of its pin
//
//   - An output is asked for together with its first level, the safe one, in
//     one ioctl: it never shows the other level, whatever it was before.
//   - Reading an output reads. It is never made an input to look at it.
//   - A line is found by the chip's label and the name that the kernel gives
//     it; only where a kernel has other names, by label and offset. The number
//     in /dev/gpiochipN changes between kernels and is never used.
//   - A line that somebody else holds is not shared: the error says who.
//   - Levels are levels. The kernel's active-low flag is never set; a pin's
//     polarity is applied in one place, package gpio.
//   - An output asks for a bias towards its safe level, so that a kernel which
//     makes a freed line an input leaves it pulled to where the relay is open.
//
// # What a closed file means
//
// It depends on the kernel whether a line keeps its level when its holder
// dies. Those of Raspberry Pi keep it unless told persist_gpio_outputs=0;
// others make it an input. So a program that was killed may leave a relay
// closed. Against that stand the bias above, the command joulegate safe-state,
// a hardware watchdog, and an external resistor: see package board/watchdog
// and the notes of each board.
//
// periph.io/x/host has a driver for the same devices. It is not used: it makes
// an output an input when it reads it, and goes through low on the way to the
// first high. Nor is host.Init, which claims devices and takes 0.4 s on an ARMv7
// board before the first relay can be made safe: which board this is comes from
// its package distro, the positions on the header from the board's description.
package gpiochip
