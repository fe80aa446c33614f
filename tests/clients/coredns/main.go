// CoreDNS with what a test needs of it: the etcd plugin, an address to bind to, and errors.
package main

import (
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/etcd"

	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
