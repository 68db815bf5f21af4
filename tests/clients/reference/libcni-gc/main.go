// libcni-gc calls GC for a network as a runtime does: with the list of the attachments that it still has. cnitool, the
// other client of these tests, has no way to pass one.
//
//	libcni-gc NETWORK [CONTAINER/INTERFACE]...
//
// NETCONFPATH and CNI_PATH are read as cnitool reads them.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := gc(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func gc(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: libcni-gc NETWORK [CONTAINER/INTERFACE]...")
	}
	list, err := libcni.LoadNetworkConf(os.Getenv("NETCONFPATH"), args[0])
	if err != nil {
		return err
	}
	// An empty list, and not none: the runtime has nothing.
	valid := []types.GCAttachment{}
	for _, arg := range args[1:] {
		container, ifname, found := strings.Cut(arg, "/")
		if !found {
			return fmt.Errorf("%q is not CONTAINER/INTERFACE", arg)
		}
		valid = append(valid, types.GCAttachment{ContainerID: container, IfName: ifname})
	}
	runtime := libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil)
	return runtime.GCNetworkList(context.Background(), list, &libcni.GCArgs{ValidAttachments: valid})
}
