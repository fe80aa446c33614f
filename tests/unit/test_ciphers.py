"""Names of cipher suites: OpenSSL knows what stands for them."""

from __future__ import annotations

import ssl

import pytest

from kvnode.base.ciphers import OF_TLS13, OPENSSL, check_suites, openssl_list


@pytest.mark.parametrize("name", sorted(OPENSSL))
def test_openssl_takes_each(name: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Level 0: whether it is known, not whether the machine's policy lets it be used.
    context.set_ciphers(openssl_list([name]) + ":@SECLEVEL=0")
    chosen = {c["name"] for c in context.get_ciphers() if c["protocol"] != "TLSv1.3"}
    assert chosen == {OPENSSL[name]}


def test_suites_of_tls_1_3_are_known_and_not_chosen() -> None:
    check_suites(OF_TLS13)
    assert openssl_list(OF_TLS13) == ""
    with pytest.raises(ValueError, match="RC4"):
        check_suites(["RC4"])
