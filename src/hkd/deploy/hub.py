"""An export on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hkd.config import ExportConfig
from hkd.deploy.exporting import export
from hkd.errors import RequestError, TrainingError
from hkd.options import shown
from hkd.outside import as_path, printable

CARD, README = "MODEL_CARD.md", "README.md"
"""The card's name in an export, and where the Hub looks for it."""


def push_to_hub(
    run: str | Path, repo_id: str, *, private: bool = True, token: str | None = None, config: ExportConfig | None = None
) -> str:
    """Exports a trained network and uploads the files in one commit, the model card as ``README.md``.

    Args:
        run: a run folder or a .safetensors file.
        repo_id: ``user/name``; made where there is none.
        private: whether a repository that is made is private.
        token: of the Hub; None for the one that ``hf auth login`` keeps.
        config: how to export, such as ``hkd.ExportConfig(int8=True, license="apache-2.0")``; ``run`` takes the place of
            its ``checkpoint``, and a temporary folder that of its ``output``.

    Returns:
        The address of the commit.

    Raises:
        RequestError: the run or the name of the repository is wrong, or there is no token.
        TrainingError: the export failed, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RequestError(f"repo_id: expected user/name; got {shown(repo_id)}") from error
    if not (token or get_token()):
        raise RequestError("token: the Hub needs one; log in with `hf auth login`, or pass token")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        asked = replace(config or ExportConfig(), checkpoint=str(as_path(run, "run")), output=folder)
        files = export(asked).files
        operations = [
            CommitOperationAdd(path_in_repo=README if file.name == CARD else file.name, path_or_fileobj=str(file))
            for file in files
        ]
        try:
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.create_commit(made.repo_id, operations, commit_message="A network of hkd")
        except Exception as error:  # of the library, of its HTTP client, of the machine
            reason = printable(" ".join(str(error).split()))
            raise TrainingError(f"cannot upload to {printable(repo_id)} on {api.endpoint} ({reason})") from error
    return str(commit.commit_url)
