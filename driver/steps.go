package driver

import (
	"context"
	"errors"
	"sync"
	"time"

	"sordino/environment"
)

// Bounded limits the time of a step's attempt. The end of it is an error that
// is tried again.
func Bounded(limit time.Duration, do func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return do(ctx)
	}
}

// Each runs a function for all at once, and joins the errors; one that will not
// be mended by trying again stands for all.
func Each[T any](all []T, do func(T) error) error {
	errs := make([]error, len(all))
	var running sync.WaitGroup
	for i, one := range all {
		running.Go(func() { errs[i] = do(one) })
	}
	running.Wait()
	for _, err := range errs {
		var final *environment.Error
		if errors.As(err, &final) {
			return final
		}
	}
	return errors.Join(errs...)
}
