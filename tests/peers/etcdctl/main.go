// Command etcdctl is etcd's own command line, for the tests that use it as a foreign client.
package main

import "go.etcd.io/etcd/etcdctl/v3/ctlv3"

func main() {
	ctlv3.MustStart()
}
