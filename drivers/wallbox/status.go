package wallbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// VehicleState implements drivers.Limiter.
func (b *Box) VehicleState(ctx context.Context) (s drivers.VehicleState, err error) {
	err = b.sequence(ctx, func(ctx context.Context) error {
		points, err := b.points(ctx, b.state)
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		s, err = b.vehicle(points)
		return err
	})
	return s, err
}

// vehicle is the state that points tell. A code without a letter is an error:
// a driver that guesses may energise a fault.
func (b *Box) vehicle(points []meter.Point) (drivers.VehicleState, error) {
	s, ok := b.prof.VehicleState(points)
	if !ok {
		code, read := value(points, meter.Status)
		switch text, isText := b.prof.StatusText(code); {
		case !read:
			return drivers.StateUnknown, fmt.Errorf("it tells no status")
		case isText:
			return drivers.StateUnknown, fmt.Errorf("status %q has no letter of IEC 61851-1", text)
		}
		return drivers.StateUnknown, fmt.Errorf("status %d has no letter of IEC 61851-1", code)
	}
	return s, nil
}

func value(points []meter.Point, q meter.Quantity) (int64, bool) {
	i := slices.IndexFunc(points, func(p meter.Point) bool { return p.Quantity == q && p.Phase == 0 })
	if i < 0 {
		return 0, false
	}
	return points[i].Value, true
}

// Status implements drivers.Statused.
func (b *Box) Status(ctx context.Context) (out drivers.Status, err error) {
	err = b.sequence(ctx, func(ctx context.Context) error {
		points, err := b.points(ctx, b.status)
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		if out.Vehicle, err = b.vehicle(points); err != nil {
			return err
		}
		out.Code, _ = value(points, meter.Status)
		out.Fault, _ = value(points, meter.Fault)
		out.Derated = slices.Contains(b.prof.Derated, out.Code)
		if t, ok := value(points, meter.Temperature); ok {
			out.Temperature = &t
		}
		if a, ok := value(points, meter.CurrentLimit); ok {
			limit := meter.MilliAmpere(a)
			out.Limit = &limit
		} else if b.held != nil {
			a, ok, err := b.held(ctx)
			if err != nil {
				return fmt.Errorf("limit: %w", err)
			}
			if limit := meter.MilliAmpere(a); ok {
				out.Limit = &limit
			}
		}
		return nil
	})
	return out, err
}

// Profile returns the id of the device's profile.
func (b *Box) Profile() string { return b.prof.ID }
