package environment

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// The sizes of pages.
const (
	DefaultPageSize = 50
	MaxPageSize     = 1000
)

// cursor is what a page token holds: the last entry of the page before, and
// what was asked, so that a token is no use for another question.
type cursor struct {
	Query string `json:"q"`
	// After is the entry's name.
	After string `json:"a"`
	// Created tells operations apart by age, in nanoseconds of Unix time.
	Created int64 `json:"c,omitempty"`
}

// open checks a page and reads its token; query is everything else in the
// request. A zero cursor is the first page.
func (p Page) open(defaultSize int, query ...string) (size int, at cursor, err error) {
	switch {
	case p.Size < 0:
		return 0, cursor{}, Refuse([]Violation{{Field: "page_size", Reason: "PAGE_SIZE_NEGATIVE",
			Description: fmt.Sprintf("The page size is %d. Ask for 1 to %d entries, or for 0 to have %d.", p.Size, MaxPageSize, defaultSize),
			Metadata:    map[string]string{"value": fmt.Sprint(p.Size)}}})
	case p.Size == 0:
		size = defaultSize
	default:
		size = min(int(p.Size), MaxPageSize)
	}
	at.Query = hashOf(query)
	if p.Token == "" {
		return size, at, nil
	}
	var given cursor
	text, err := base64.RawURLEncoding.DecodeString(p.Token)
	if err != nil || len(text) > 4096 || json.Unmarshal(text, &given) != nil || given.After == "" || given.Query != at.Query {
		return 0, cursor{}, Refuse([]Violation{{Field: "page_token", Reason: "PAGE_TOKEN_INVALID",
			Description: "The page token is not one that this server gave for this list. Use nextPageToken of the page before with the same request, or leave it out to begin anew."}})
	}
	return size, given, nil
}

func (c cursor) token() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and a number
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func hashOf(parts any) string {
	text, err := json.Marshal(parts)
	if err != nil {
		panic(err) // strings only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
