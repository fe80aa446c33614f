"""etcd's v3 services, as far as they are not per request: tables, rare handlers, HTTP, JSON.

What is called often (KV, Watch, Lease) is answered in `_core`; here stand the table of all RPCs
(`service`), what a handler may ask of its gateway (`node`), and the handlers of the rest.
"""
