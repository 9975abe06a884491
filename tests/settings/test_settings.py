"""The configuration: what is read, what is refused, and in which words."""

from __future__ import annotations

import os
import pickle
import subprocess
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest

from dicomai.errors import ConfigError, NotFound
from dicomai.net.node import Node
from dicomai.routing.route import Route
from dicomai.settings import SettingsError, check_models, check_tls, load, reference
from tests.conftest import Authority

GOOD = """
[service]
data = "data"
timezone = "Europe/Berlin"

[[nodes]]
name = "PACS1"
ae_title = "PACS1"
host = "192.0.2.1"
port = 104

[[nodes]]
name = "CT1"
ae_title = "CT1"
addresses = ["192.0.2.0/24", "2001:db8::1"]
association_per_study = true

[[routes]]
name = "lungs"
model = "chest-ct-lungs"
mode = "shadow"
when = ["Modality = CT", "calling_node = CT1", "instances >= 20"]
destinations = ["PACS1"]
since = 2026-01-01
allow = ["derived"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dicomai.toml"
    path.write_text(GOOD)
    return path


def _problems(file: Path, text: str, **environ: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file, environ)
    assert caught.value.sentence == "\n".join(each.sentence for each in caught.value.problems)
    return [each.sentence.removeprefix(f"{file}, ") for each in caught.value.problems]


def test_a_file_becomes_settings(file: Path) -> None:
    settings = load(file, {})

    assert settings.nodes[0] == Node(name="PACS1", ae_title="PACS1", host="192.0.2.1", port=104)
    (route,) = settings.routes
    assert [str(each) for each in route.when] == [
        "Modality = CT",
        "calling_node = CT1",
        "instances >= 20",
    ]
    assert (route.mode, route.since, route.allow) == ("shadow", date(2026, 1, 1), ("derived",))
    assert settings.receiver.port == 11112
    assert settings.node("CT1").association_per_study


def test_relative_paths_are_relative_to_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    settings = load(file, {})

    assert settings.folders.data == tmp_path / "data"
    assert settings.folders.spool == tmp_path / "data" / "spool"
    assert settings.database.url == f"sqlite:///{tmp_path / 'data' / 'dicomai.db'}"


def test_relative_paths_are_relative_to_the_file_that_a_link_leads_to(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "dicomai.toml"
    link.symlink_to(file)

    assert load(link, {}).folders.data == tmp_path / "data"


def test_a_link_to_a_folder_whose_name_is_no_utf_8_is_refused(file: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"R\xf6ntgen")
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)

    (sentence,) = _problems(file, '[service]\ndata = "link"\n')
    assert "is no UTF-8" in sentence


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("service.data", '[service]\ndata = "~no-such-user/x"\n'),
        ("tls.certificate", '[tls]\ncertificate = "~no-such-user/x"\nkey = "key.pem"\n'),
    ],
)
def test_a_home_folder_that_nobody_has_is_a_problem(file: Path, key: str, table: str) -> None:
    assert _problems(file, table) == [
        f"{key}: this machine knows no home folder '~no-such-user'. Write the whole path."
    ]


def test_variables_stand_over_the_file(file: Path) -> None:
    settings = load(
        file,
        {
            "DICOMAI_RECEIVER__PORT": "104",
            "DICOMAI_DATABASE__URL": "postgresql://db/dicomai",
            "DICOMAI_DECIDE__PLACEHOLDER_IDS": "0, NN",
            "DICOMAI_TEST_DATA": "ignored: no section",
        },
    )

    assert settings.receiver.port == 104
    assert settings.database.url == "postgresql://db/dicomai"
    assert settings.decide.placeholder_ids == ("0", "NN")


def test_where_the_file_is_looked_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[receiver]\nport = 1234\n")
    monkeypatch.chdir(tmp_path)

    assert load(other, {"DICOMAI_CONFIG": str(file)}).receiver.port == 1234
    assert load(None, {"DICOMAI_CONFIG": str(other)}).receiver.port == 1234
    assert load(None, {}).receiver.port == 11112
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match="`dicomai init FOLDER` writes one"):
        load(None, {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[recever]\n", 'recever: unknown key; "receiver"? Correct or remove it.'),
        (
            "[receiver]\nporrt = 1\n",
            'receiver.porrt: unknown key; "port"? Correct or remove it.',
        ),
        (
            "[receiver]\nport = 70000\n",
            "receiver.port: 70000 is no port: a port is a whole number from 1 to 65535. Correct",
        ),
        (
            '[receiver]\nport = "dicom"\n',
            "receiver.port: 'dicom' is no port: a port is a whole number from 1 to 65535.",
        ),
        ("[receiver]\nreserve_bytes = -1\n", "receiver.reserve_bytes: -1 must be 0 or more."),
        ("[worker]\nlease_s = 0\n", "worker.lease_s: 0 must be more than 0. Correct it."),
        ("[worker]\nstop_s = []\n", "worker.stop_s: "),
        (
            '[receiver]\nae_title = "FAR TOO LONG A TITLE"\n',
            "receiver.ae_title: 'FAR TOO LONG A TITLE' is no AE title: 1 to 16 printable ASCII",
        ),
        (
            '[service]\ntimezone = "Berlin"\n',
            "service.timezone: no time zone 'Berlin'; write it as Europe/Berlin. Correct it.",
        ),
        (
            '[database]\nurl = "mysql://x"\n',
            "database.url: no database of ours: leave it empty, or write postgresql://user@host/na",
        ),
        ('[[nodes]]\nname = "A"\n', 'node "A", ae_title: is missing. Add it.'),
        (
            '[[nodes]]\nname = "A"\nae_title = "A"\nquiet = 3\n',
            'node "A", quiet: unknown key; "quiet_s"? Correct or remove it.',
        ),
        (
            '[[nodes]]\nname = "A"\nae_title = "A"\naddresses = ["10.0.0.x"]\n',
            "node \"A\": address '10.0.0.x' is no IP address or network. Correct it.",
        ),
        (
            '[[nodes]]\nname = "A"\nae_title = "A"\nmay = ["store", "commit"]\n',
            'node "A": a node that may commit needs host and port: there it is told. Correct it.',
        ),
        (
            '[[nodes]]\nname = "A"\nae_title = "A"\ncommitment = true\n',
            'node "A": a node that is asked for storage commitment needs host and port. Cor',
        ),
        (
            '[[nodes]]\nname = "A"\nae_title = "A"\naddresses = "192.0.2.1"\n',
            """node "A", addresses: '192.0.2.1' is no list; write it in brackets, as ["A"] or""",
        ),
        (
            '[[nodes]]\nname = "A"\nae_title = "A"\nhost = "a"\n',
            'node "A": host and port go together, and a port is 1 to 65535. Correct it.',
        ),
    ],
)
def test_what_is_wrong_is_said_with_key_reason_and_remedy(
    file: Path, text: str, sentence: str
) -> None:
    (found,) = _problems(file, text)
    assert found.startswith(sentence)


ROUTE = '[[routes]]\nname = "r"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            f'{ROUTE}when = ["Modalty = CT"]',
            'route "r", when[0]: "Modalty" is no DICOM keyword; "Mod',
        ),
        (f'{ROUTE}mode = "on"', "route \"r\", mode: 'on' must be 'off', 'shadow' or 'live'"),
        (f"{ROUTE}model_name = 1", 'route "r", model_name: unknown key; "model"?'),
        (f'{ROUTE}allow = ["scouts"]', "route \"r\", allow[0]: 'scouts' must be 'localizer'"),
        (
            f'{ROUTE}destinations = ["PACS2"]\n[[nodes]]\nname = "PACS1"\nae_title = "P"',
            'route "r", destinations[0]: no node "PACS2"; "PACS1"? Add it under [[nodes]].',
        ),
        (
            f'{ROUTE}destinations = ["PACS1"]\n[[nodes]]\nname = "PACS1"\nae_title = "P"',
            'route "r", destinations[0]: node "PACS1" has no host. Give it host and port.',
        ),
        (f'{ROUTE}when = ["calling_node = CT1"]', 'route "r", when: calling_node: no node "CT1"'),
        (f"{ROUTE}{ROUTE}", 'routes[1].name: "r" is routes[0] too. Give each one of its own.'),
    ],
)
def test_routes_are_checked_against_dictionary_and_nodes(file: Path, text: str, words: str) -> None:
    (sentence,) = _problems(file, text)
    assert sentence.startswith(words)


def test_what_has_no_name_of_its_own_is_named_by_its_place(file: Path) -> None:
    node = '[[nodes]]\nae_title = "A"\nhost = "a"\nport = 1\nquiet = 3\n'
    assert {each.partition(":")[0] for each in _problems(file, node)} == {
        "nodes[0].name",
        "nodes[0].quiet",
    }


def test_every_problem_is_found_at_once(file: Path) -> None:
    text = "[receiver]\nport = 0\n[worker]\nlease = 3\n" + ROUTE + 'when = ["Nothing"]\n'
    assert len(_problems(file, text, DICOMAI_LOG__LEVL="info", DICOMAI_LGO__LEVEL="info")) == 5


def test_a_wrong_variable_is_named_as_such(file: Path) -> None:
    (sentence,) = _problems(file, "", DICOMAI_WORKER__LEASE_S="long")
    assert sentence.startswith("environment, DICOMAI_WORKER__LEASE_S: 'long' is no number")


def test_two_nodes_with_one_ae_title_are_refused_unless_it_stands_for_any(file: Path) -> None:
    nodes = '[[nodes]]\nname = "A"\nae_title = "{0}"\n[[nodes]]\nname = "B"\nae_title = "{0}"\n'
    file.write_text(nodes.format("*"))
    assert len(load(file, {}).nodes) == 2
    (sentence,) = _problems(file, nodes.format("X"))
    assert sentence == 'node "B", ae_title: "X" is node "A" too. Give each one of its own.'


def test_no_toml_and_no_file_are_said(file: Path, tmp_path: Path) -> None:
    (sentence,) = _problems(file, "[receiver\n")
    assert "is no TOML: " in sentence
    with pytest.raises(SettingsError, match=r"No such file or directory\. `dicomai init FOLDER`"):
        load(tmp_path / "absent.toml", {})


def test_a_file_that_was_saved_on_windows_is_read(file: Path) -> None:
    wanted = load(file, {})
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())

    assert load(file, {}) == wanted


def test_a_file_in_another_encoding_is_told_to_be_saved_as_utf8(file: Path) -> None:
    file.write_bytes(GOOD.replace('"lungs"', '"pulmões"').encode("latin-1"))
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    line = 1 + GOOD[: GOOD.index('"lungs"')].count("\n")
    assert caught.value.sentence == (
        f"{file}: is no text in UTF-8, at line {line}. Have the editor save it as UTF-8."
    )


def test_quotes_of_a_word_processor_are_named(file: Path) -> None:
    (sentence,) = _problems(file, GOOD.replace('"CT1"', "“CT1”", 1))
    assert sentence.endswith("""Correct that line. Quotes are " or ' in TOML, and not “ ” ‘ ’.""")


def test_models_are_checked_against_those_that_are_installed(file: Path) -> None:
    settings = load(file, {})

    assert check_models(settings, ["chest-ct-lungs"]) == ()
    (problem,) = check_models(settings, ["chest-ct-lung"])
    assert problem.sentence == (
        f'{file}, route "lungs", model: no package "chest-ct-lungs"; "chest-ct-lung"? '
        "See: dicomai models."
    )


def test_an_unknown_node_is_not_found(file: Path) -> None:
    with pytest.raises(NotFound, match=r"no node 'PACS'\. There are: PACS1, CT1\."):
        load(file, {}).node("PACS")


def test_every_setting_is_documented() -> None:
    documented = {(each.table, each.key): each for each in reference()}

    assert all(each.description for each in documented.values())
    for table, kind in (("[[nodes]]", Node), ("[[routes]]", Route)):
        assert {key for name, key in documented if name == table} == {
            each.name for each in fields(kind)
        }
    assert documented["[receiver]", "port"].default == "11112"


def test_the_error_travels_between_processes(file: Path) -> None:
    file.write_text("[x]\n")
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


SECURED = """
[tls]
certificate = "tls/ours.pem"
key = "tls/ours.key"
authorities = "/etc/ssl/hospital.pem"

[[nodes]]
name = "CT1"
ae_title = "CT1"
tls = true
certificate = "CN=ct1, O=Hospital"
max_associations = 4
"""


@pytest.mark.parametrize("name", ["", "a/b", "..", "CT\\n1", "x" * 65, "ä" * 33, "CT,1"])
def test_a_name_of_a_node_can_be_part_of_a_file_s_name(file: Path, name: str) -> None:
    (problem,) = _problems(file, f'[[nodes]]\nname = "{name}"\nae_title = "CT1"')
    assert "is no name of a node" in problem


def test_files_of_tls_are_relative_to_the_configuration(file: Path, tmp_path: Path) -> None:
    file.write_text(SECURED)
    tls = load(file, {}).tls
    assert tls.files.certificate == tmp_path / "tls" / "ours.pem"
    assert tls.files.authorities == Path("/etc/ssl/hospital.pem")
    assert (tls.port, tls.only) == (2762, False)
    assert load(file, {"DICOMAI_TLS__KEY": ""}).tls.files.key is None


@pytest.mark.parametrize(
    ("text", "other", "key", "reason"),
    [
        ('certificate = "tls/ours.pem"\n', "", "tls.key", "there is no tls.certificate"),
        ("[tls]", "[receiver]\nport = 2762\n[tls]", "tls.port", "receiver.port is the same"),
        ('authorities = "/etc/ssl/hospital.pem"', "", 'node "CT1"', "Name its authority's"),
        ("[tls]", "[query]\nport = 104\n[tls]\nonly = true", "query.tls", "tls.only allows no"),
        ("tls = true", "", 'node "CT1"', "known by its certificate needs tls = true"),
        ("CN=ct1, O=Hospital", "ct1.pem", 'node "CT1"', "pins no certificate: write sha256:"),
        ("max_associations = 4", "max_associations = -1", 'node "CT1"', "max_associations is 0"),
    ],
)
def test_what_does_not_fit_together_in_tls_is_named(
    file: Path, text: str, other: str, key: str, reason: str
) -> None:
    assert text in SECURED
    (problem,) = _problems(file, SECURED.replace(text, other, 1))
    assert problem.startswith(f"{key}: ")
    assert reason in problem


def test_files_of_tls_are_checked_before_anything_starts(
    file: Path, tmp_path: Path, authority: Authority
) -> None:
    ours, key = authority.issue("ours")
    _, other_key = authority.issue("other")
    weak, weak_key = authority.issue("weak", key="weak")
    gone, gone_key = authority.issue("gone", days=-1)
    for_mail, mail_key = authority.issue("mail", extensions="extendedKeyUsage=emailProtection")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked],
        check=True,
    )

    def said(certificate: Path, key: Path, authorities: Path = authority.certificate) -> str:
        file.write_text(
            f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\nauthorities = "{authorities}"'
        )
        return "".join(each.sentence for each in check_tls(load(file, {})))

    assert said(ours, key) == ""
    missing = tmp_path / "missing.pem"
    assert f"{missing} can't be read: no such file or directory" in said(missing, key)
    assert f"{missing} can't be read" in said(ours, key, missing)
    assert f"{other_key} is not the key of {ours}" in said(ours, other_key)
    assert "are no certificate and its key in PEM" in said(key, key)
    assert f"{key} holds no certificates" in said(ours, key, key)
    assert "the key has a password" in said(ours, locked)
    assert "an RSA key of 2048 bits" in said(weak, weak_key)
    assert f"{gone} has expired" in said(gone, gone_key)
    assert "Have one issued for a TLS server" in said(for_mail, mail_key)


def test_routes_of_one_model_ask_for_one_form_of_its_masks(file: Path) -> None:
    other = GOOD.partition("[[routes]]")[2].replace('name = "lungs"', 'name = "more"')
    asked = 'objects = ["SEG:FRACTIONAL", "SEG:LABELMAP", "SR"]\n'
    (problem,) = _problems(file, f"{GOOD}[[routes]]{other}{asked}")
    assert problem == (
        'route "more", objects: "SEG:FRACTIONAL" and "SEG" of one model: an analysis gives one of '
        "them. Ask for the same one in all its routes."
    )
    file.write_text(GOOD + asked)
    assert load(file, {}).routes[0].objects == ("SEG:FRACTIONAL", "SEG:LABELMAP", "SR")
