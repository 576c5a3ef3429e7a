from dataclasses import replace

from facade.cache_salt import cache_salt
from mantler.tenancy.store import KeyRecord

KEY = KeyRecord("key_a", "", "mk_live_", None, None, 0, None, None)
OTHER = replace(KEY, id="key_b")


def test_tenants_and_salts_never_meet() -> None:
    salts = {cache_salt(key, own) for key in (KEY, OTHER) for own in (None, "a", "b", cache_salt(KEY, None), "key_b")}
    assert len(salts) == 10
    assert cache_salt(KEY, "a") == cache_salt(replace(KEY, name="renamed"), "a")


def test_a_salt_tells_nothing() -> None:
    salt = cache_salt(KEY, "secret")
    assert "key_a" not in salt
    assert "secret" not in salt
