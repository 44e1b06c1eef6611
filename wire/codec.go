package wire

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that is asked for by name
	"google.golang.org/grpc/mem"
)

// frame is a message as it came.
type frame []byte

// codec is gRPC's own for messages, and leaves a frame as it is: gRPC answers a
// message that its codec cannot decode at once, before anybody was asked who
// may call.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		*f = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
