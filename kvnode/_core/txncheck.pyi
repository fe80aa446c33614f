# C functions only (txncheck.pxd); kvnode._core.messages is the Python side.
