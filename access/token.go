package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// NewToken makes a token of 256 random bits and its hash for the policy file.
func NewToken() (token string, hash [sha256.Size]byte) {
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails: the program ends instead
	token = "sordino_" + base64.RawURLEncoding.EncodeToString(random[:])
	return token, sha256.Sum256([]byte(token))
}

// OwnerToken returns the token of the server's own user, from a file that only
// that user can read; it is made when it is not there.
func OwnerToken(path string) (token string, err error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return makeOwnerToken(path)
	case err != nil:
		return "", fmt.Errorf("reading the server's token: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return "", fmt.Errorf("the server's token %s can be read by others (%v): chmod 600 it, or delete it to get a new one", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the server's token: %w", err)
	}
	token = strings.TrimSpace(string(text))
	if len(token) < 32 {
		return "", fmt.Errorf("the server's token %s is too short to be safe: delete the file to get a new one", path)
	}
	return token, nil
}

// makeOwnerToken writes the whole file before it has its name: a second program
// that starts at the same time sees all of it or nothing, and the first wins.
func makeOwnerToken(path string) (string, error) {
	token, _ := NewToken()
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*") // 0600
	if err != nil {
		return "", fmt.Errorf("making the server's token: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(token + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("making the server's token: %w", err)
	}
	err = os.Link(f.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return OwnerToken(path)
	}
	if err != nil {
		return "", fmt.Errorf("making the server's token: %w", err)
	}
	return token, nil
}
