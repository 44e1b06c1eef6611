package main

import "context"

func newConnections(ctx context.Context, b *bench) ([]row, error) { return nil, nil }
func forwarding(ctx context.Context, b *bench) ([]row, error)     { return nil, nil }
func endurance(ctx context.Context, b *bench) ([]row, error)      { return nil, nil }
func idle(ctx context.Context, b *bench) ([]row, error)           { return nil, nil }
