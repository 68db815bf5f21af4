//go:build tools

// Package tools pins the reference CNI client that the tests drive Weft's plugin with; nothing here is compiled
// into Weft. `cargo xtask test` builds it from the versions in go.mod and go.sum.
package tools

import _ "github.com/containernetworking/cni/cnitool"
