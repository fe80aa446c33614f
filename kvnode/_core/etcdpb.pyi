# C functions only (etcdpb.pxd); kvnode._core.messages is the Python side.
