"""A damaged log or release is repaired from what is whole elsewhere."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tasks.release import deployment_log, holds
from tasks.release.repair import repair
from tests.tasks.release.samples import MODEL

DAMAGES = {"emptied": b"", "zeroed": b"\0" * 99, "halved": b'{"number": 1, "kind"'}


def damage(store, number: int, content: bytes) -> None:
    store.objects.write(deployment_log.entry_path(*MODEL, number), content)


def without_times(entry) -> dict:
    values = entry.model_dump(mode="json")
    for part in (values, values["event"] or {}):
        part.pop("at", None)
        part.pop("time", None)
    return values


class TestLog:
    def test_that_is_whole_is_left_alone(self, deploy, store):
        deploy(b"one")
        found = repair(store, *MODEL)
        assert all(well for well, _ in found)
        assert found[0] == (True, "The log is whole: 2 entries.")

    @pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_gets_a_damaged_entry_back(self, deploy, store, number, content):
        deploy(b"one")
        deploy(b"two")
        before = deployment_log.entries(store, *MODEL)
        damage(store, number, content)
        found = repair(store, *MODEL)
        assert all(well for well, _ in found), found
        after = deployment_log.entries(store, *MODEL)
        assert [without_times(entry) for entry in after] == [
            without_times(entry) for entry in before
        ]
        kept = store.objects.read(f"{deployment_log.entry_path(*MODEL, number)}.damaged")
        assert (kept[0] if kept else b"") == content

    def test_gets_a_quarantine_and_a_freeze_back(self, deploy, store):
        newest = deploy(b"one")
        holds.quarantine(store, newest, newest, "Ada", "it swears", "")
        holds.freeze(store, *MODEL, "Ada", "a holiday")
        holds.unfreeze(store, *MODEL, "Ada", "back at work")
        holds.lift(store, "tiny", newest.release.version, "Ada", "it was the prompt")
        before = deployment_log.entries(store, *MODEL)
        # The newest one is implied by nothing.
        for number in (3, 4, 5):
            damage(store, number, b"{")
            assert all(well for well, _ in repair(store, *MODEL))
        after = deployment_log.entries(store, *MODEL)
        kinds = ["revealing", "deployed", "quarantined", "frozen", "unfrozen", "lifted"]
        assert [entry.kind for entry in after] == kinds
        quarantined = [entry.quarantined for entry in before]
        assert [entry.quarantined for entry in after] == quarantined
        # Who froze it, and why, was in the damaged entry alone.
        assert [entry.frozen is None for entry in after] == [
            entry.frozen is None for entry in before
        ]

    def test_gets_neighbouring_entries_back(self, deploy, store):
        deploy(b"one")
        deploy(b"two")
        for number in (1, 2):
            damage(store, number, b"")
        # Entry 2 could be anything: entry 1, which would show it, is damaged too.
        found = repair(store, *MODEL)
        assert [well for well, _ in found][:2] == [False, False]
        assert "Restore logs/tiny/production/00000002.json" in found[0][1]

    def test_a_claim_that_never_became_a_deployment_is_removed(self, deploy, store):
        deployed = deploy(b"one")
        deployment_log.claim(store, deployed.release.model_copy(update={"digest": "x"}), 2, "died")
        damage(store, 3, b"")
        assert "Entry 3, the newest, is removed" in repair(store, *MODEL)[0][1]
        assert deployment_log.head(store, *MODEL) == deployed

    def test_a_release_that_was_revealed_and_not_announced_is_finished_by_the_next_run(
        self, deploy, store, context
    ):
        claim = deploy(b"one", announced=False)
        damage(store, 1, b"")
        assert "Entry 1, the newest, is removed" in repair(store, *MODEL)[0][1]
        # The run that claims the number again takes the pointer over.
        assert deploy(b"two").number == 2
        assert claim.number == 1


class TestArtifacts:
    @pytest.fixture
    def release(self, deploy):
        return deploy(b"weights").release

    def home(self, store, artifact) -> Path:
        return Path(store.uri) / "artifacts" / artifact.kind / artifact.digest

    @pytest.mark.parametrize("content", [b"", b"{}", None])
    def test_a_lost_manifest_is_written_again(self, store, release, content):
        manifest = self.home(store, release.provenance) / "manifest.json"
        whole = manifest.read_bytes()
        manifest.unlink() if content is None else manifest.write_bytes(content)
        assert all(well for well, _ in repair(store, *MODEL))
        assert manifest.read_bytes() == whole

    def test_a_damaged_model_is_restored_from_where_it_was_published(self, store, release):
        weights = self.home(store, release.artifact) / "files" / "model.safetensors"
        weights.write_bytes(b"weighty")
        found = repair(store, *MODEL)
        assert (True, f"The model of version {release.version} is restored "
                "(the changed file model.safetensors).") in found  # fmt: skip
        assert weights.read_bytes() == b"weights"

    def test_the_card_is_restored_from_where_it_was_published(self, store, release):
        card = self.home(store, release.provenance) / "files" / "card" / "README.md"
        whole = card.read_bytes()
        card.unlink()
        assert all(well for well, _ in repair(store, *MODEL))
        assert card.read_bytes() == whole

    def test_the_hashes_of_the_inputs_are_restored_from_the_dataset(self, store, release):
        seen = self.home(store, release.provenance) / "files" / "seen.npy"
        seen.write_bytes(b"something else")
        assert all(well for well, _ in repair(store, *MODEL))
        assert seen.read_bytes() == b""

    def test_what_exists_only_once_cannot_be_restored_and_says_what_that_means(
        self, store, release
    ):
        (self.home(store, release.provenance) / "files" / "provenance.json").write_bytes(b"{")
        (sentence,) = [sentence for well, sentence in repair(store, *MODEL) if not well]
        assert "The provenance of version" in sentence and "Runs go on without it" in sentence

    def test_a_model_of_which_no_copy_is_left_says_what_to_do(self, store, release, tmp_path):
        for folder in (self.home(store, release.artifact), tmp_path / "releases"):
            for file in folder.rglob("model.safetensors"):
                file.write_bytes(b"weighty")
        assert [sentence for well, sentence in repair(store, *MODEL) if not well] == [
            f"The model of version {release.version} is damaged (the changed file "
            "model.safetensors), and no other copy was found. Run the recipe that made it again."
        ]


class TestEvents:
    def test_of_a_mended_deployment_has_the_id_that_consumers_know(self, deploy, store):
        event = deploy(b"one").event
        damage(store, 2, b"")
        repair(store, *MODEL)
        mended = deployment_log.deployed(store, *MODEL)
        assert mended.event.id == event.id
        assert orjson.loads(mended.event.model_dump_json())["data"]["version"] == (
            event.data.version
        )
