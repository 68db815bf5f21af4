//go:build tools

// Package tools pins the CNI project's own programs that the tests use beside Weft's plugin: its client, IPAM plugins that
// Weft delegates to, plugins that are chained behind it, and the bridge that it is compared with. Nothing here is compiled into
// Weft; `cargo xtask test` builds them from the versions in go.mod and go.sum.
package tools

import (
	_ "github.com/containernetworking/cni/cnitool"
	_ "github.com/containernetworking/plugins/plugins/ipam/dhcp"
	_ "github.com/containernetworking/plugins/plugins/ipam/host-local"
	_ "github.com/containernetworking/plugins/plugins/ipam/static"
	_ "github.com/containernetworking/plugins/plugins/main/bridge"
	_ "github.com/containernetworking/plugins/plugins/main/loopback"
	_ "github.com/containernetworking/plugins/plugins/meta/bandwidth"
	_ "github.com/containernetworking/plugins/plugins/meta/portmap"
)
