"""The server's certificate as etcd's flags name it.

Callers: the gateway's doors for their listeners, and the supervisor, so that a file that can't be
used is said before anything is started.
"""

from __future__ import annotations

import ssl

from kvnode.base.ciphers import openssl_list
from kvnode.base.config import Config
from kvnode.base.errors import ConfigError


def tls_context(config: Config) -> ssl.SSLContext:
    """The server's side of TLS, from the certificate and key files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    versions = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}
    context.minimum_version = versions[config.tls_min_version]
    if config.tls_max_version:
        context.maximum_version = versions[config.tls_max_version]
    if suites := openssl_list(config.cipher_suites):
        context.set_ciphers(suites)
    # gRPC clients offer h2 alone; who offers both (curl, browsers) wants pages and JSON, which are
    # HTTP/1.1's here.
    context.set_alpn_protocols(["http/1.1", "h2"])
    try:
        context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--cert-file {config.cert_file}, --key-file {config.key_file}: "
            f"{error.strerror or error}"
        ) from None
    return context
