"""Sets of policies that were in force are kept by their revision, and shown to those whom they concern."""

from __future__ import annotations

from pathlib import Path

from remit_broker.adapters.cedar import CedarEngine, Policies
from remit_broker.adapters.policy_archive import PolicyArchive
from remit_broker.core.policy_texts import revision_of

TEXT = '@id("all") @reason("for everybody") permit(principal, action, resource);\n'


def test_every_set_that_comes_into_force_is_kept_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "a.cedar").write_text(TEXT)
    engine, archive = CedarEngine.load(folder), PolicyArchive(tmp_path / "data")
    engine.kept_by(archive.keep)
    first = engine.revision
    (folder / "a.cedar").write_text(TEXT.replace("all", "everything"))
    engine.put(Policies.read(folder))
    assert archive.texts([first, engine.revision, "0" * 64, "../x"], "default") == {
        first: {"a.cedar": TEXT},
        engine.revision: {"a.cedar": TEXT.replace("all", "everything")},
    }


def test_policies_of_other_tenants_are_in_no_evidence(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path / "data")
    mine = {"a.cedar": TEXT, "tenant/acme/b.cedar": TEXT}
    both = {**mine, "tenant/other/c.cedar": TEXT}
    archive.keep(mine)
    archive.keep(both)
    revisions = [revision_of(mine), revision_of(both)]
    assert list(archive.texts(revisions, "acme")) == [revisions[0]]
    assert archive.texts(revisions, "default") == {}
