package loopback

import "testing"

func TestOnly(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:8080": true, "localhost:0": true, "[::1]:80": true, ":8080": false, "0.0.0.0:8080": false, "10.0.0.1:80": false, "nonsense": false} {
		if Only(address) != want {
			t.Errorf("%q is loopback: %v", address, !want)
		}
	}
}
