package rest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// elements keeps the JSON of lists' elements: writing it is most of what a long
// list costs, and most of it was written the same before. They are found by a
// digest of what they were made from, so none is ever out of date.
type elements struct {
	mu    sync.Mutex
	json  map[digest][]byte
	bytes int
}

type digest [sha256.Size]byte

// mostElements is how many bytes are kept. When they are too many all go: what
// is asked for still comes again soon.
const mostElements = 32 << 20

func (e *elements) get(d digest) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.json[d]
}

func (e *elements) put(d digest, json []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.json == nil || e.bytes+len(json) > mostElements {
		e.json, e.bytes = map[digest][]byte{}, 0
	}
	e.json[d] = json
	e.bytes += len(json)
}

// encodeList writes a message whose first field is a list of messages, as
// encode would: each element for itself, into the place of a single empty one.
func (h *Handler) encodeList(r *route, m proto.Message, f protoreflect.FieldDescriptor, p *params) ([]byte, error) {
	source := m.ProtoReflect()
	frame := source.New()
	source.Range(func(other protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if other != f {
			frame.Set(other, v)
		}
		return true
	})
	frame.SetUnknown(source.GetUnknown())
	frame.Mutable(f).List().AppendMutable()
	body, err := r.marshal(frame.Interface(), r.method.Output(), p)
	if err != nil {
		return nil, err
	}
	before, after, found := bytes.Cut(p.shape(body, ""), []byte("{}"))
	if !found {
		return nil, fmt.Errorf("no place for the list %s", f.FullName())
	}
	prefix, separator := "", ","
	if p.pretty {
		prefix = string(before[bytes.LastIndexByte(before, '\n')+1:])
		separator = ",\n" + prefix
	}
	list := source.Get(f).List()
	all := bytes.NewBuffer(append(make([]byte, 0, len(before)+len(after)+list.Len()*1024), before...))
	for i := range list.Len() {
		one, err := h.encodeElement(r, list.Get(i).Message().Interface(), r.method.Output().Fields().ByNumber(f.Number()).Message(), p, prefix)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			all.WriteString(separator)
		}
		all.Write(one)
	}
	all.Write(after)
	return all.Bytes(), nil
}

// encodeElement writes an element as a type. The service is in the key because
// it says what can be in an Any.
func (h *Handler) encodeElement(r *route, m proto.Message, as protoreflect.MessageDescriptor, p *params, prefix string) ([]byte, error) {
	key := fmt.Appendf(nil, "%p %s %t %t %q ", r.service, as.FullName(), p.pretty, p.enumNumbers, prefix)
	key, err := proto.MarshalOptions{AllowPartial: true, Deterministic: true}.MarshalAppend(key, m)
	if err != nil {
		return nil, err
	}
	d := digest(sha256.Sum256(key))
	if json := h.elements.get(d); json != nil {
		return json, nil
	}
	body, err := r.marshal(m, as, p)
	if err != nil {
		return nil, err
	}
	json := bytes.TrimRight(p.shape(body, prefix), "\n")
	h.elements.put(d, json)
	return json, nil
}
