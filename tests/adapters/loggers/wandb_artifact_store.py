"""The part of the W&B stub that takes artifacts: collections, manifests, files, aliases, and which run used which."""

import base64
import hashlib
import json
from dataclasses import dataclass, field


@dataclass
class StoredArtifact:
    """A version of an artifact as it arrived.

    Attributes:
        id: as the service calls it.
        name: its collection.
        kind: its type.
        digest: the client's digest of its manifest.
        metadata: what describes it.
        made_by: the run that logged it; None where no run did.
        state: ``PENDING`` until the client commits it.
        used_by: runs that took it as an input, in the order they said so.
        history_step: the step of its run at which it was logged.
        files: contents by name.
        manifest: names to entries, as the client wrote them.
    """

    id: str
    name: str
    kind: str
    digest: str
    metadata: dict
    made_by: str | None
    history_step: int | None
    state: str = "PENDING"
    used_by: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, dict] = field(default_factory=dict)


class ArtifactStore:
    """Artifacts of one project. What does not fit together is refused, so that a client that is wrong is found out.

    Attributes:
        made: every version in the order it was created.
        aliases: collection and alias to version.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self.made: list[StoredArtifact] = []
        self.aliases: dict[tuple[str, str], StoredArtifact] = {}
        self._announced: dict[tuple[str, str], str] = {}

    def named(self, name: str) -> list[StoredArtifact]:
        """The committed versions of a collection, oldest first."""
        return [one for one in self.made if one.name == name and one.state == "COMMITTED"]

    def answer(self, operation: str, asked: dict, project: dict) -> dict | None:
        """The data of a GraphQL answer; None where this is no business of artifacts."""
        match operation:
            case "ArtifactType":
                found = self.aliases.get(tuple(asked["name"].split(":")))
                return {"project": {"artifact": found and {"artifactType": {"name": found.kind}}}}
            case "CreateArtifact":
                return {"createArtifact": {"artifact": self._create(asked["input"])}}
            case "CreateArtifactManifest":
                return {"createArtifactManifest": {"artifactManifest": self._manifest_place(asked)}}
            case "CreateArtifactFiles":
                edges = [{"node": self._file_place(asked_file)} for asked_file in asked["input"]["artifactFiles"]]
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                committed = self._of(asked["artifactID"])
                self._check_whole(committed)
                committed.state = "COMMITTED"
                return {"commitArtifact": {"artifact": {"id": committed.id, "digest": committed.digest}}}
            case "UseArtifact":
                used = self._of(asked["input"]["artifactID"])
                assert used.state == "COMMITTED", "a version that is not committed is used"
                used.used_by.append(asked["input"]["runName"])
                return {"useArtifact": {"artifact": {"id": used.id}}}
            case "ArtifactByID":
                return {"artifact": self._described(self._of(asked["id"]), project)}
        return None

    def take(self, path: str, data: bytes, md5: str) -> None:
        """An upload to one of the addresses that were given out."""
        number, _, name = path.partition("/")
        artifact = self._of(number)
        announced = self._announced[number, name]
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        assert announced == digest, f"{name} is not what its digest says"
        assert md5 in ("", digest)
        if name == "wandb_manifest.json":
            artifact.manifest = json.loads(data)["contents"]
        else:
            artifact.files[name] = data

    def _of(self, number: str) -> StoredArtifact:
        (found,) = (one for one in self.made if one.id == number)
        return found

    def _create(self, asked: dict) -> dict:
        name, digest = asked["artifactCollectionName"], asked["digest"]
        earlier = self.named(name)
        made = next((one for one in earlier if one.digest == digest), None)
        if made is None:
            metadata, step = json.loads(asked.get("metadata") or "{}"), asked.get("historyStep")
            run, number = asked.get("runName"), f"artifact-{len(self.made)}"
            made = StoredArtifact(number, name, asked["artifactTypeName"], digest, metadata, run, step)
            self.made.append(made)
        for alias in asked.get("aliases") or ():
            self.aliases[alias["artifactCollectionName"], alias["alias"]] = made
        latest = {"id": earlier[-1].id} if earlier else None
        return {"id": made.id, "state": made.state, "artifactSequence": {"latestArtifact": latest}}

    def _manifest_place(self, asked: dict) -> dict:
        artifact, name = self._of(asked["artifactID"]), asked["name"]
        if not asked["includeUpload"]:
            return {"id": f"{artifact.id}-manifest", "file": {"id": "f"}}
        self._announced[artifact.id, name] = asked["digest"]
        return {"id": f"{artifact.id}-manifest", "file": {"id": "f", **self._address_of(artifact.id, name)}}

    def _file_place(self, asked: dict) -> dict:
        self._announced[asked["artifactID"], asked["name"]] = asked["md5"]
        place = self._address_of(asked["artifactID"], asked["name"])
        return {
            "storagePath": asked["name"],
            **place,
            "uploadMultipartUrls": None,
            "artifact": {"id": asked["artifactID"]},
        }

    def _address_of(self, number: str, name: str) -> dict:
        return {"uploadUrl": f"{self._address}/artifact/{number}/{name}", "uploadHeaders": []}

    def _check_whole(self, artifact: StoredArtifact) -> None:
        files = {name for name, entry in artifact.manifest.items() if "ref" not in entry}
        assert artifact.manifest, "a version without a manifest is committed"
        assert files == set(artifact.files), "the files are not those of the manifest"

    def _described(self, artifact: StoredArtifact, project: dict) -> dict:
        collection = {
            "__typename": "ArtifactSequence",
            "name": artifact.name,
            "project": {**project, "internalId": "1"},
        }
        aliases = [alias for (name, alias), one in self.aliases.items() if one is artifact and name == artifact.name]
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "artifactSequence": collection,
            "versionIndex": [one for one in self.made if one.name == artifact.name].index(artifact),
            "artifactType": {"name": artifact.kind},
            "description": None,
            "metadata": json.dumps(artifact.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": artifact.history_step,
            "state": artifact.state,
            "size": sum(map(len, artifact.files.values())),
            "digest": artifact.digest,
            "commitHash": None,
            "fileCount": len(artifact.files),
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "aliases": [
                {"__typename": "ArtifactAlias", "id": alias, "alias": alias, "artifactCollection": collection}
                for alias in aliases
            ],
        }
