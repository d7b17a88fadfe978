package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/boards"
	"github.com/joulegate/joulegate/drivers/gpio/gpiochip"
	"github.com/spf13/cobra"
)

func newBoardCmd() *cobra.Command {
	c := &cobra.Command{Use: "board", Short: "Tell boards, their pins and this computer's GPIO lines"}
	c.AddCommand(
		&cobra.Command{
			Use:   "ls",
			Short: "List the boards that joulegate knows, and which one this is",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				here, _ := detectedBoard()
				var list []boardView
				for _, id := range boards.IDs() {
					b, err := boards.Get(id)
					if err != nil {
						return err
					}
					list = append(list, boardView{ID: id, Title: b.Title, Detected: id == here, Pins: len(b.Pins)})
				}
				return emit(cmd, map[string]any{"boards": list}, func(w io.Writer) error {
					rows := [][]string{{"BOARD", "PINS", "WHAT", ""}}
					for _, b := range list {
						mark := ""
						if b.Detected {
							mark = "this computer"
						}
						rows = append(rows, []string{b.ID, strconv.Itoa(b.Pins), b.Title, mark})
					}
					return table(w, rows)
				})
			},
		},
		&cobra.Command{
			Use:     "show [BOARD]",
			Short:   "Show a board's pins, where they are on the header, and what to do so that they are safe",
			Example: "  joulegate board show raspberrypi-4\n  joulegate board show            # the configured board, with your own pins",
			Args:    cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				b, err := boardOf(cmd, args)
				if err != nil {
					return err
				}
				list := []pinView{}
				for _, p := range b.Pins {
					list = append(list, viewPin(p))
				}
				return emit(cmd, map[string]any{"board": b.ID, "title": b.Title, "source": b.Source, "pins": list, "notes": b.Notes}, func(w io.Writer) error {
					rows := [][]string{{"PIN", "HEADER", "LINE", "CHIP", "DIRECTION", "ACTIVE", "AT REST"}}
					for _, p := range list {
						rows = append(rows, []string{p.Pin, p.Header, p.Line, p.Chip, p.Direction, p.Active, p.Rest})
					}
					fmt.Fprintf(w, "%s\n\n", b.Title)
					if len(list) > 0 {
						if err := table(w, rows); err != nil {
							return err
						}
						fmt.Fprintln(w)
					}
					for _, n := range b.Notes {
						fmt.Fprintln(w, "-", n)
					}
					return nil
				})
			},
		},
		&cobra.Command{
			Use:   "lines",
			Short: "List this computer's GPIO lines and who holds them; changes nothing",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				lines, err := gpiochip.New().Lines()
				if err != nil {
					return err
				}
				list := make([]lineView, len(lines))
				for i, l := range lines {
					list[i] = lineView{Chip: l.Label, Device: l.Chip, Line: l.Offset, Label: l.Name, Used: l.Used, By: l.Consumer}
				}
				return emit(cmd, map[string]any{"lines": list}, func(w io.Writer) error {
					rows := [][]string{{"CHIP", "DEVICE", "LINE", "LABEL", "USED BY"}}
					for _, l := range list {
						by := l.By
						if l.Used && by == "" {
							by = "the kernel"
						}
						rows = append(rows, []string{l.Chip, l.Device, strconv.Itoa(l.Line), l.Label, by})
					}
					return table(w, rows)
				})
			},
		},
	)
	return c
}

type boardView struct {
	ID       string `json:"board"`
	Title    string `json:"title"`
	Pins     int    `json:"pins"`
	Detected bool   `json:"detected"`
}

type pinView struct {
	Pin       string `json:"pin"`
	Header    string `json:"header,omitempty"` // P1_11: pin 11 of the 40-pin header
	Line      string `json:"line,omitempty"`
	Chip      string `json:"chip,omitempty"`
	Direction string `json:"direction"`
	Active    string `json:"active"`
	Rest      string `json:"rest"`
}

type lineView struct {
	Chip   string `json:"chip"`
	Device string `json:"device"`
	Line   int    `json:"line"`
	Label  string `json:"label"`
	Used   bool   `json:"used"`
	By     string `json:"by,omitempty"`
}

func viewPin(p board.Pin) pinView {
	v := pinView{Pin: p.Name, Chip: p.Chip, Direction: string(p.Direction), Active: "high", Rest: "pull " + string(p.Pull)}
	if p.Backend == board.BackendSocket {
		v.Chip = "socket"
	} else if v.Line = strconv.Itoa(p.Line); p.Label != "" {
		v.Line += " " + p.Label
	}
	if p.Header > 0 {
		v.Header = fmt.Sprintf("P1_%d", p.Header)
	}
	if p.Polarity == board.ActiveLow {
		v.Active = "low"
	}
	if p.Direction == board.Output {
		v.Rest = "low, open"
		if p.SafeHigh {
			v.Rest = "high, open"
		}
	}
	return v
}

// boardOf returns the named board, or the configured one.
func boardOf(cmd *cobra.Command, args []string) (board.Board, error) {
	if len(args) == 1 {
		return boards.Get(args[0])
	}
	path, _ := cmd.Flags().GetString("config")
	cfg, err := loadConfig(path)
	if err != nil {
		return board.Board{}, err
	}
	return cfg.Hardware()
}
