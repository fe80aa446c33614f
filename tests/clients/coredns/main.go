// CoreDNS with what a test needs of it: the etcd plugin, and the plugins that show its errors.
package main

import (
	_ "github.com/coredns/coredns/plugin/debug"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/etcd"

	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
