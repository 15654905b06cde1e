r"""Make a folder for the Hub of a target and its draft: weights, tokenizer, catalogue, decoding method, card.

    atspeed export --target_model output/toy/target --draft_model output/toy/draft-AtSpeedSModel --output export/toy
    atspeed export --target_model output/toy/target --output export/toy --push me/toy-recommender --license apache-2.0

Who has the folder, or its repository, decodes with model.generate(…, custom_generate=FOLDER, trust_remote_code=True),
or recommends with Recommender.from_pretrained(FOLDER, draft=f"{FOLDER}/draft"). --results: a folder of stage 4 or of
quality.sh, whose table the card shows. --license: of the model; it depends on that of the base.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from atspeed.recommend.served import ServedCatalogue
from genrec.runtime.artefacts import hold, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import FACTS, atomic_path, check_new, contents, write_text

logger = logging.getLogger(__name__)


def main(
    target_model: str,
    output: str,
    draft_model: str | None = None,
    name: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    results: str | None = None,
    push: str | None = None,
    private: bool = True,
    overwrite: bool = False,
) -> None:
    path, target = Path(output), Path(target_model)
    facts = read_facts(target, "finetune_llama", "finetune_llama")
    draft = None if draft_model is None else read_facts(Path(draft_model), "train", "train")
    served, setting = ServedCatalogue.open(target_model, draft_model)
    table = _results(results)
    if push is not None and push.count("/") != 1:
        raise UserError(f"--push {push}: give the repository as OWNER/NAME")
    check_new(path, overwrite)
    hold(path)

    from atspeed.checkpoints.loading import load_tokenizer
    from atspeed.hub import custom_generate
    from atspeed.hub.model_card import model_card
    from beamsd import Trie

    base = base_model or facts["arguments"].get("base_model")
    with atomic_path(path) as partial:
        _copy(target, partial)
        if draft_model is not None:
            _copy(Path(draft_model), partial / custom_generate.DRAFT)
        Trie(served.catalogue.token_ids(load_tokenizer(target_model))).save(partial / custom_generate.TRIE)
        (partial / "custom_generate").mkdir()
        shutil.copyfile(str(custom_generate.__file__), partial / "custom_generate" / "generate.py")
        card = model_card(
            name or push or path.name, facts, setting, draft, len(served.items), served.catalogue.levels, license,
            base if base and not Path(base).exists() else None, table,
        )  # fmt: skip
        write_text(partial / "README.md", card)
        write_facts(partial, {key: value for key, value in facts.items() if key != "files"})
    print(f"{output}: {len(contents(path))} files")
    if push is not None:
        _push(path, push, private)


def _copy(source: Path, target: Path) -> None:
    """The files that this project wrote to `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for each in read_facts(source, ("finetune_llama", "train"), "train")["files"]:
        (target / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / each, target / each)
    shutil.copyfile(source / FACTS, target / FACTS)


def _results(folder: str | None) -> str | None:
    """The table of a folder of results."""
    if folder is None:
        return None
    found = sorted(Path(folder).glob("*.md"))
    if len(found) != 1:
        raise UserError(f"--results {folder}: has {len(found)} tables (*.md), and one is needed")
    return found[0].read_text("utf-8")


def _push(folder: Path, repository: str, private: bool) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="atspeed export")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise UserError(
            f"--push {repository}: {' '.join(str(error).split())[:300]}; log in with `hf auth login`. {folder} is "
            f"whole; to push it later: hf upload {repository} {folder}"
        ) from error
    print(f"pushed to {repository}")
