from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from pydantic import ValidationError

from ingester.config import (
    Address,
    KafkaSettings,
    Settings,
    environment_name,
    load,
    parse_address,
    settings_table,
    updated_markdown,
)
from ingester.errors import ConfigurationError

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
SECRET = "hunter2hunter2"
REQUIRED = {
    "INGESTER_KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
    "INGESTER_TOPIC": "usage",
    "INGESTER_PACSPACE_URL": "https://pacspace.example",
    "PACSPACE_API_KEY": f"pk_test_public.{SECRET}",
}
SASL = {
    "INGESTER_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "INGESTER_KAFKA_SASL_USERNAME": "ingester",
    "INGESTER_KAFKA_SASL_PASSWORD": SECRET,
}


def settings(**environ: str) -> Settings:
    return load(Settings, environ={**REQUIRED, **environ}, config_file=None).settings


def problems(environ: dict[str, str], config_file: Path | None = None) -> list[str]:
    """The lines of the refusal, without its first and its last."""
    with pytest.raises(ConfigurationError) as refusal:
        load(Settings, environ=environ, config_file=config_file)
    return [line.strip() for line in str(refusal.value).splitlines()[1:-1]]


def problem(**environ: str) -> str:
    (line,) = problems({**REQUIRED, **environ})
    return line


def test_the_required_settings_suffice() -> None:
    """With the four required settings everything else has the documented default."""
    loaded = settings()

    assert loaded.topics == ("usage",)
    assert (
        loaded.items_max,
        loaded.linger_seconds,
        loaded.body_bytes_max,
        loaded.requests_in_flight_max,
    ) == (100, 0.05, 1024 * 1024, 32)
    assert (
        loaded.group_id,
        loaded.group_instance_id,
        loaded.session_timeout_seconds,
        loaded.poll_interval_seconds_max,
    ) == ("pacspace-ingester", None, 10, 300)
    assert Address("127.0.0.1", 8080) == loaded.http_listen


def test_environment_wins_over_file_over_default(tmp_path: Path) -> None:
    """Each setting comes from the strongest source that has it, and its origin says which."""
    file = tmp_path / "ingester.toml"
    file.write_text('items_max = 7\nlinger_seconds = 1.5\ntopic = ["a", "b"]\n')

    loaded = load(Settings, environ={**REQUIRED, "INGESTER_ITEMS_MAX": "9"}, config_file=file)

    assert loaded.settings.items_max == 9
    assert loaded.settings.linger_seconds == 1.5
    assert {
        "items_max": "environment INGESTER_ITEMS_MAX",
        "linger_seconds": f"file {file}",
        "coalesce": "default",
        "pacspace_api_key": "environment PACSPACE_API_KEY",
    }.items() <= loaded.origins.items()
    assert set(Settings.model_fields) == set(loaded.origins)


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    """INGESTER_CONFIG_FILE names the file, and an explicit one goes before it."""
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text("items_max = 1")
    other.write_text("items_max = 2")
    environ = {**REQUIRED, "INGESTER_CONFIG_FILE": str(one)}

    assert load(Settings, environ=environ, config_file=None).settings.items_max == 1
    assert load(Settings, environ=environ, config_file=other).settings.items_max == 2


def test_an_empty_variable_is_unset() -> None:
    """An empty variable means the default, or that a required setting is missing."""
    assert settings(INGESTER_ITEMS_MAX="").items_max == 100
    assert problem(INGESTER_TOPIC="").startswith("INGESTER_TOPIC is required: ")


def test_a_command_loads_the_group_it_needs() -> None:
    """A group asks for its own required settings only, and lets those of other groups be."""
    environ = {
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
        "INGESTER_TOPIC": "usage",
        "INGESTER_ITEMS_MAX": "not even a number",
    }

    loaded = load(KafkaSettings, environ=environ, config_file=None)

    assert loaded.settings.kafka_bootstrap_servers == ("localhost:9092",)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Unknown, missing and malformed settings are told in one go, in the names as written."""
    file = tmp_path / "ingester.toml"
    file.write_text("linger_seconds = -1\nbogus = 1\n")

    lines = problems({"INGESTER_ITEMS_MAX": "0", "INGESTER_TOPICS": "usage"}, file)

    assert [
        "INGESTER_TOPICS is not a setting; did you mean INGESTER_TOPIC?",
        f"bogus in {file} is not a setting",
        "INGESTER_KAFKA_BOOTSTRAP_SERVERS is required",
        "INGESTER_TOPIC is required",
        "INGESTER_PACSPACE_URL is required",
        "PACSPACE_API_KEY is required",
        "INGESTER_ITEMS_MAX is '0': should be greater than or equal to 1",
        f"linger_seconds in {file} is -1: should be greater than or equal to 0",
    ] == [line.partition(" required")[0] + " required" * (" required" in line) for line in lines]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("INGESTER_LINGER", "INGESTER_LINGER_SECONDS"),
        ("INGESTER_PACSPACE_API_KEY", "PACSPACE_API_KEY"),
        ("INGESTER_BOOTSTRAP_SERVERS", "INGESTER_KAFKA_BOOTSTRAP_SERVERS"),
        ("INGESTER_HTTP_PORT", "INGESTER_HTTP_LISTEN"),
    ],
)
def test_a_misspelt_variable_is_refused_with_a_suggestion(variable: str, meant: str) -> None:
    """A variable that is no setting is refused and the nearest setting is named, not its value."""
    line = problem(**{variable: SECRET})

    assert f"{variable} is not a setting; did you mean {meant}?" == line


def test_names_in_the_file_are_those_of_the_settings(tmp_path: Path) -> None:
    """A variable's name in the file is refused with the name that belongs there."""
    file = tmp_path / "ingester.toml"
    file.write_text("ITEMS_MAX = 1")

    assert [f"ITEMS_MAX in {file} is not a setting; did you mean items_max?"] == problems(
        REQUIRED, file
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INGESTER_SERVICE_HOST", "10.0.0.1"),
        ("INGESTER_SERVICE_PORT", "8080"),
        ("INGESTER_SERVICE_PORT_HTTP", "8080"),
        ("INGESTER_PORT", "tcp://10.0.0.1:8080"),
        ("INGESTER_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("INGESTER_PORT_8080_TCP_PROTO", "tcp"),
        ("INGESTER_PORT_8080_TCP_PORT", "8080"),
        ("INGESTER_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("INGESTER_METRICS_SERVICE_HOST", "10.0.0.2"),
        ("INGESTER_METRICS_SERVICE_PORT_HTTP_METRICS", "9090"),
        ("INGESTER_METRICS_PORT", "tcp://10.0.0.2:9090"),
        ("INGESTER_METRICS_PORT_9090_TCP_ADDR", "10.0.0.2"),
        ("INGESTER_TEST_KAFKA", "localhost:9092"),
        ("INGESTER_CONFIG_FILE", ""),
    ],
)
def test_what_others_put_into_the_environment_is_left_alone(variable: str, value: str) -> None:
    """Kubernetes' service variables and those of the tests are not taken for misspelt settings."""
    assert settings() == settings(**{variable: value})


@pytest.mark.parametrize(
    "content", ["topic = ", "topic = 'a'\ntopic = 'b'", "\xff"], ids=["cut", "twice", "latin-1"]
)
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: str) -> None:
    """A file that cannot be parsed is refused by its name."""
    file = tmp_path / "ingester.toml"
    file.write_text(content, encoding="latin-1")

    with pytest.raises(ConfigurationError, match=r"ingester\.toml is not TOML"):
        load(Settings, environ=REQUIRED, config_file=file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that is not there is refused by its name and the system's reason."""
    with pytest.raises(ConfigurationError, match=r"absent\.toml cannot be read: No such file"):
        load(Settings, environ=REQUIRED, config_file=tmp_path / "absent.toml")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_secret_in_a_readable_file_is_warned_about(
    tmp_path: Path, mode: int, *, warned: bool
) -> None:
    """A secret in a file is accepted, with a warning where others may read the file."""
    file = tmp_path / "ingester.toml"
    file.write_text(f'pacspace_api_key = "pk_test_public.{SECRET}"')
    file.chmod(mode)

    loaded = load(Settings, environ=REQUIRED, config_file=file)

    assert warned == bool(loaded.warnings)
    assert all(f"chmod 600 {file}" in line and SECRET not in line for line in loaded.warnings)


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("64KiB", 65536), ("64 KiB", 65536), ("1 MB", 1_000_000), ("1MiB", 2**20)],
)
def test_sizes_are_bytes_or_have_a_unit(text: str, size: int) -> None:
    """A size is written as bytes or with a unit, decimal or binary."""
    assert size == settings(INGESTER_BODY_BYTES_MAX=text).body_bytes_max


@pytest.mark.parametrize("literal", ["true", "[1]", '"1e99"', "nan"])
def test_a_number_is_a_number(tmp_path: Path, literal: str) -> None:
    """What TOML could smuggle in for a number is refused."""
    file = tmp_path / "ingester.toml"
    file.write_text(f"linger_seconds = {literal}")

    (line,) = problems(REQUIRED, file)

    assert line.startswith(f"linger_seconds in {file} is ")


def _bounds() -> list[tuple[str, float, float]]:
    return [
        (
            name,
            *(
                getattr(c, b)
                for c, b in itertools.product(field.metadata, ("ge", "le"))
                if hasattr(c, b)
            ),
        )
        for name, field in Settings.model_fields.items()
        if any(hasattr(constraint, "ge") for constraint in field.metadata)
    ]


@pytest.mark.parametrize(("name", "lowest", "highest"), _bounds())
def test_every_number_is_bounded_on_both_sides(name: str, lowest: float, highest: float) -> None:
    """The bounds of a number hold its default, if it has one, and what lies beyond is refused."""
    default = Settings.model_fields[name].default

    assert default is None or lowest <= default <= highest
    for value in (lowest - 0.5, highest * 2):
        assert any(
            line.startswith(f"{environment_name(name)} is ")
            for line in problems({**REQUIRED, environment_name(name): str(value)})
        )


def test_no_number_is_without_bounds() -> None:
    """A setting that is a number has bounds."""
    numbers = {
        name
        for name, field in Settings.model_fields.items()
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }

    assert numbers <= {name for name, *_ in _bounds()}


def test_the_drain_ends_before_the_session() -> None:
    """A shorter session alone is no contradiction: the drain's own time shrinks with it."""
    assert 8.0 == settings().drain_seconds
    assert 4.8 == pytest.approx(settings(INGESTER_SESSION_TIMEOUT_SECONDS="6").drain_seconds)
    assert 3.0 == settings(INGESTER_DRAIN_TIMEOUT_SECONDS="3").drain_seconds


def test_topics_are_unique_and_in_order() -> None:
    """Several topics are separated by commas; one that is named twice is read once."""
    assert settings(INGESTER_TOPIC="b, a,b ,c,").topics == ("b", "a", "c")


@pytest.mark.parametrize("topic", ["..", ".", "a b", "usage/events", "ü", "a" * 250, ","])
def test_a_topic_has_a_name_that_kafka_allows(topic: str) -> None:
    """What Kafka would refuse as a topic's name is refused at the start."""
    assert problem(INGESTER_TOPIC=topic).startswith("INGESTER_TOPIC is ")


@pytest.mark.parametrize(
    "servers", ["kafka", "kafka:", ":9092", "kafka:0", "kafka:65536", "a:1,b", "::1:9092", "x y:1"]
)
def test_a_bootstrap_server_is_host_and_port(servers: str) -> None:
    """A bootstrap server without a usable port, or with a host that is none, is refused."""
    line = problem(INGESTER_KAFKA_BOOTSTRAP_SERVERS=servers)

    assert line.startswith("INGESTER_KAFKA_BOOTSTRAP_SERVERS is ")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:8080", Address("::1", 8080)),
        ("[0:0::1]:8080", Address("::1", 8080)),
    ],
)
def test_an_address_is_read_and_shown(text: str, address: Address) -> None:
    """HOST:PORT is split, an IPv6 address in brackets, and shown so that it can be read again."""
    assert address == parse_address(text)
    assert address == parse_address(str(address))


@pytest.mark.parametrize("text", ["8080", ":8080", "::1:80", "[::g]:80", "a:b", "h:-1", "h:8o", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Anything else than HOST:PORT is refused."""
    with pytest.raises(ValueError, match=r"should be HOST:PORT|should end in a port"):
        parse_address(text)


def test_serving_can_be_switched_off() -> None:
    """`off` means that nothing is served, and is shown again as such."""
    without = settings(INGESTER_HTTP_LISTEN="off")

    assert without.http_listen is None
    assert without.shown("http_listen") == "off"


@pytest.mark.parametrize(
    "url",
    [
        "pacspace.example",
        "ftp://pacspace.example",
        "https://",
        "https://pacspace.example/api/v1",
        "https://pacspace.example/?a=b",
        "https://pacspace.example:99999",
        f"https://user:{SECRET}@pacspace.example",
    ],
)
def test_the_url_is_a_base_url(url: str) -> None:
    """A URL with a path, a query, a login or without a host is refused, the login untold."""
    line = problem(INGESTER_PACSPACE_URL=url)

    assert line.startswith("INGESTER_PACSPACE_URL is ")
    assert SECRET not in line


def test_a_trailing_slash_is_tolerated() -> None:
    """The base URL with and without a slash at its end is the same."""
    assert settings(INGESTER_PACSPACE_URL="https://h:8443/").pacspace_url == "https://h:8443"


@pytest.mark.parametrize(
    "key",
    [SECRET, "pk_test_public", "pk_test_public.", f"pk_prod_public.{SECRET}", f"pk_test_.{SECRET}",
     f"pk_test_public.{SECRET} {SECRET}", f"pk_test_public.{SECRET}\u00fc"],
)  # fmt: skip
def test_an_api_key_has_its_form(key: str) -> None:
    """A key of another form is refused without being repeated."""
    line = problem(PACSPACE_API_KEY=key)

    assert line == "PACSPACE_API_KEY should have the form pk_{live,test}_PUBLIC.SECRET"


def test_a_key_may_end_in_a_line_end() -> None:
    """Whitespace around a key, as read from a file, is not part of it."""
    key = settings(PACSPACE_API_KEY=f"pk_live_a.{SECRET}\n").pacspace_api_key

    assert f"pk_live_a.{SECRET}" == key.get_secret_value()


@pytest.mark.parametrize("name", ["group_id", "topic", "items_max", "log_level", "coalesce"])
def test_a_secret_in_the_wrong_place_is_not_repeated(name: str) -> None:
    """A key that was put into another setting does not show in the refusal."""
    value = f"pk_live_public.{SECRET}" + "/" * 300

    (line,) = problems({**REQUIRED, environment_name(name): value})

    assert line.startswith(environment_name(name))
    assert SECRET not in line


def test_no_secret_shows_in_a_settings_object() -> None:
    """Neither the model, nor its dump, nor a failed construction shows a secret."""
    loaded = settings(**SASL)
    with pytest.raises(ValidationError) as failure:
        Settings.model_validate({"pacspace_api_key": SECRET, "kafka_sasl_password": [SECRET]})

    for text in (repr(loaded), str(loaded), loaded.model_dump_json(), str(failure.value)):
        assert SECRET not in text
    assert loaded.shown("pacspace_api_key") == "pk_test_public.***"
    assert loaded.shown("kafka_sasl_password") == "***"


@pytest.mark.parametrize(
    ("error_code", "environ"),
    [
        ("drain_not_below_session_timeout", {"INGESTER_DRAIN_TIMEOUT_SECONDS": "10"}),
        (
            "linger_not_below_poll_interval",
            {"INGESTER_LINGER_SECONDS": "5", "INGESTER_POLL_INTERVAL_SECONDS_MAX": "5"},
        ),
        (
            "request_timeout_not_above_connect_timeout",
            {"INGESTER_REQUEST_TIMEOUT_SECONDS": "5"},
        ),
        ("backoff_bounds_crossed", {"INGESTER_BACKOFF_SECONDS_MIN": "31"}),
        ("body_above_buffer", {"INGESTER_BUFFER_BYTES_MAX": "1.5 MiB"}),
        ("dead_letter_topic_is_a_source", {"INGESTER_TOPIC": "usage,usage.dead-letters"}),
        ("dead_letter_topic_is_a_source", {"INGESTER_DEAD_LETTER_TOPIC": "usage"}),
        ("dead_letter_topic_name_too_long", {"INGESTER_TOPIC": "a" * 240}),
        ("sasl_without_credentials", {**SASL, "INGESTER_KAFKA_SASL_PASSWORD": ""}),
        (
            "credentials_without_sasl",
            {**SASL, "INGESTER_KAFKA_SECURITY_PROTOCOL": "SSL"},
        ),
        ("tls_files_without_tls", {"INGESTER_KAFKA_SSL_CA_FILE": __file__}),
        (
            "tls_key_without_certificate",
            {
                "INGESTER_KAFKA_SECURITY_PROTOCOL": "SSL",
                "INGESTER_KAFKA_SSL_KEY_FILE": __file__,
            },
        ),
        (
            "live_key_on_sandbox_host",
            {
                "PACSPACE_API_KEY": f"pk_live_public.{SECRET}",
                "INGESTER_PACSPACE_URL": "https://api-sandbox-wnizuypena-uw.a.run.app",
            },
        ),
        ("secret_over_plain_http", {"INGESTER_PACSPACE_URL": "http://pacspace.example"}),
    ],
)
def test_a_contradiction_is_refused_by_name(error_code: str, environ: dict[str, str]) -> None:
    """Settings that cannot be had together are refused under a name that the manual explains."""
    line = problem(**environ)

    assert line.startswith(f"{error_code}: ")
    assert any(name in line for name in environ)
    assert SECRET not in line
    assert f"| `{error_code}` |" in DOCUMENT.read_text(encoding="utf-8")


def test_a_contradiction_names_settings_as_they_were_written(tmp_path: Path) -> None:
    """A contradiction between file and environment names both places, with the values."""
    file = tmp_path / "ingester.toml"
    file.write_text("drain_timeout_seconds = 30")

    (line,) = problems({**REQUIRED, "INGESTER_SESSION_TIMEOUT_SECONDS": "20"}, file)

    assert f"drain_timeout_seconds in {file} (30)" in line
    assert "INGESTER_SESSION_TIMEOUT_SECONDS (20)" in line


@pytest.mark.parametrize(
    ("host", "test_key", "live_key"),
    [
        ("127.0.0.1", True, True),
        ("[::1]", True, True),
        ("localhost", True, True),
        ("simulator", True, False),
        ("pacspace.default.svc.cluster.local", True, False),
        ("host.docker.internal", True, False),
        ("192.168.1.7", True, False),
        ("8.8.8.8", False, False),
        ("app.pacspace.io", False, False),
    ],
)
def test_plain_http_depends_on_key_and_host(host: str, *, test_key: bool, live_key: bool) -> None:
    """Over plain http a live key goes to loopback only, a test key also to private hosts."""
    for environment, allowed in (("test", test_key), ("live", live_key)):
        environ = {
            **REQUIRED,
            "INGESTER_PACSPACE_URL": f"http://{host}:4010",
            "PACSPACE_API_KEY": f"pk_{environment}_public.{SECRET}",
        }
        if allowed:
            assert load(Settings, environ=environ, config_file=None).settings
        else:
            assert [line.partition(":")[0] for line in problems(environ)] == [
                "secret_over_plain_http"
            ]


def test_dead_letters_are_limited_by_count_and_share_of_a_window() -> None:
    """By default a thousand in a minute that are most of it, too; none, or any number, if asked."""
    loaded = settings()
    assert (
        loaded.dead_letters_max,
        loaded.dead_letter_share_max,
        loaded.dead_letter_window_seconds,
    ) == (1000, 0.5, 60)
    strict = settings(INGESTER_DEAD_LETTERS_MAX="0", INGESTER_DEAD_LETTER_SHARE_MAX="0")
    assert (strict.dead_letters_max, strict.dead_letter_share_max) == (0, 0)
    assert settings(INGESTER_DEAD_LETTER_SHARE_MAX="1").dead_letter_share_max == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INGESTER_DEAD_LETTERS_MAX", "-1"),
        ("INGESTER_DEAD_LETTERS_MAX", "1.5"),
        ("INGESTER_DEAD_LETTER_SHARE_MAX", "50"),
        ("INGESTER_DEAD_LETTER_SHARE_MAX", "nan"),
        ("INGESTER_DEAD_LETTER_WINDOW_SECONDS", "0"),
    ],
)
def test_a_limit_of_dead_letters_that_is_none_is_refused(variable: str, value: str) -> None:
    """A share is no percentage, and a window without time holds nothing."""
    assert problem(**{variable: value}).startswith(f"{variable} is '{value}'")


def test_dead_letters_have_a_topic_beside_their_source() -> None:
    """Each usage topic has its own dead-letter topic unless one is named for all."""
    assert settings().dead_letter_topic_for("usage") == "usage.dead-letters"
    assert settings(INGESTER_DEAD_LETTER_TOPIC="dead").dead_letter_topic_for("usage") == "dead"


def test_settings_do_not_change() -> None:
    """Settings are frozen once loaded."""
    with pytest.raises(ValidationError, match="frozen"):
        settings().items_max = 1  # type: ignore[misc] # that is the point


def test_every_setting_is_described_in_one_sentence() -> None:
    """Each row of the table has a sentence, and no row breaks the table."""
    for field in Settings.model_fields.values():
        assert field.description
        assert field.description.endswith(".")
    assert {6} == {line.replace("\\|", "").count("|") + 1 for line in settings_table().splitlines()}


def test_the_manual_has_the_settings_of_the_model() -> None:
    """docs/settings.md is what `python -m ingester.config docs/settings.md` would write."""
    text = DOCUMENT.read_text(encoding="utf-8")

    assert updated_markdown(text) == text


def test_a_document_without_markers_is_left_alone() -> None:
    """Where the table belongs has to be marked."""
    with pytest.raises(ValueError, match="settings"):
        updated_markdown("# README\n")
