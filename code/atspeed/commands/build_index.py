"""Item text, or vectors of one's own, to semantic identifiers: what a recommender generates instead of item numbers.

    ENCODER=/path/to/encoder ITEMS=meta_Beauty.json.gz DATASET=beauty bash script/build_index.sh
    atspeed build-index --dataset beauty --embeddings beauty.npy --method rq-kmeans

Writes DATA_PATH/DATASET/DATASET.INDEX_NAME.json, and the folder DATASET.INDEX_NAME beside it: model, embeddings of the
texts, report.json, sharing.json (items that still share an identifier), without_text.json, facts.json. With
--fit_on train, codebooks are fitted to the items of training interactions alone, and the others get their identifiers
as new items. With --distinct digit, an identification digit tells apart the items of the same codes (TIGER, SpecGR).
With --extend, items that are not in the index yet get identifiers under the trained codebooks, whatever the flags of
the training say; the others keep theirs.
"""

import logging
import re
import shutil
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from atspeed.checkpoints.shapes import check_dtype
from genrec.data.catalogue import Catalogue
from genrec.data.splits import load_splits, seen_items
from genrec.identifiers.rqvae_settings import RQVAESettings
from genrec.identifiers.sources import VectorSource, open_source
from genrec.runtime.artefacts import already_done, hold, make_facts, read_facts, write_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import sha256

STAGE, MODEL = "build_index", "model.safetensors"
FIT_ON = ("all", "train")
logger = logging.getLogger(__name__)


def main(
    dataset: str,
    data_path: str = "data",
    index_name: str | None = None,
    items: str | None = None,
    item_count: int | None = None,
    id_column: str | None = None,
    encoder: str | None = None,
    max_tokens: int = 512,
    encode_batch_size: int = 32,
    dtype: str = "float32",
    embeddings: str | None = None,
    collaborative: int = 0,
    fit_on: str = "all",
    method: str = RQVAESettings.method,
    codebooks: tuple[int, ...] = RQVAESettings.codebooks,
    hidden: tuple[int, ...] = RQVAESettings.hidden,
    latent: int = RQVAESettings.latent,
    beta: float = RQVAESettings.beta,
    distinct: str = RQVAESettings.distinct,
    epsilon: float | None = RQVAESettings.epsilon,
    warmup_epochs: int = RQVAESettings.warmup_epochs,
    epochs: int = RQVAESettings.epochs,
    batch_size: int = RQVAESettings.batch_size,
    optimizer: str = RQVAESettings.optimizer,
    learning_rate: float = RQVAESettings.learning_rate,
    weight_decay: float = RQVAESettings.weight_decay,
    eval_epochs: int = RQVAESettings.eval_epochs,
    seed: int = RQVAESettings.seed,
    strict: bool = False,
    extend: bool = False,
    overwrite: bool = False,
) -> None:
    arguments = {
        k: v for k, v in locals().items() if k not in ("encode_batch_size", "item_count", "extend", "overwrite")
    }
    settings = RQVAESettings(**{field.name: arguments[field.name] for field in fields(RQVAESettings)})
    settings.check()
    if fit_on not in FIT_ON:
        raise UserError(f"--fit_on {fit_on}: choose from {', '.join(FIT_ON)}")
    name = index_name or method
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"--index_name {name}: letters, digits, - and _ only")
    index = Path(data_path) / dataset / f"{dataset}.{name}.json"
    output = index.with_suffix("")
    if extend:
        collaborative = read_facts(output, STAGE, STAGE)["arguments"].get("collaborative", 0)
    elif index.exists() and not output.exists() and not overwrite:
        raise UserError(f"{index}: is there already, and not ours; choose another --index_name, or pass --overwrite")
    source = open_source(
        index.parent, embeddings=embeddings, items=items, id_column=id_column, encoder=encoder, max_tokens=max_tokens,
        batch_size=encode_batch_size, dtype=check_dtype(dtype), strict=strict, count=item_count,
    )  # fmt: skip
    if extend:
        hold(index)
        extend_it(index, source, bool(collaborative))
        return
    if collaborative:
        source = with_collaborative(source, index.parent, output, collaborative)
    rows = rows_to_fit(index.parent, fit_on, len(source.names))
    about = source.about if rows is None else source.about | {"fit_on": sha256(repr(rows).encode())[:16]}
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()} | {"source": about}
    if already_done(output, output, STAGE, arguments, overwrite):
        if not index.is_file():
            raise UserError(f"{index}: is gone, though {output} says that it was written; pass --overwrite")
        return

    import torch

    from genrec.identifiers.index import Report, identifiers_of, resolve_in_turn, write_reports
    from genrec.identifiers.rqvae import save_rqvae
    from genrec.identifiers.rqvae_training import fit_rqvae

    vectors, fitted_on = source.all(output), None if rows is None else torch.tensor(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fitted = fit_rqvae(vectors, settings, rows=fitted_on, work=output / "training", device=device)
    nearest = fitted.model.codes(vectors)
    codes = resolve_in_turn(fitted.model, vectors, nearest, fitted_on)
    report = Report.of(fitted.model, vectors, nearest, codes)
    catalogue = Catalogue(identifiers_of(codes))
    save_rqvae(fitted.model, output / MODEL)
    shown = write_reports(output, report, catalogue, source, fitted)
    catalogue.save(index)
    facts = make_facts(STAGE, arguments, catalogue=catalogue.fingerprint, report=asdict(report))
    shutil.rmtree(output / "training", ignore_errors=True)
    write_facts(output, facts)
    others = [path.name for path in sorted(index.parent.glob(f"{dataset}.*.json")) if path != index]
    print("\n".join(shown))
    print(f"written to {index}" + (f"; pass it with --index, as {', '.join(others)} lies beside it" if others else ""))


def with_collaborative(source: VectorSource, data: Path, output: Path, size: int) -> VectorSource:
    """The vectors of `source` beside those of who chose what. Raises UserError if the data cannot give so many."""
    from genrec.identifiers.collaborative import FILE, WithCollaborative, written_vectors

    train = {user: items for user, items in load_splits(data).train.items() if len(items) > 1}
    if not train:
        raise UserError(f"--collaborative {size}: no training sequence of {data} has two items; leave it out")
    n_items = len(source.names)
    if size > n_items:
        raise UserError(f"--collaborative {size}: must be at most {n_items}, the items")
    check_named(data, max(map(max, train.values())), n_items)
    about = source.about | {"train": sha256(repr(sorted(train.items())).encode())[:16]}
    return WithCollaborative(source, partial(written_vectors, output / FILE, train, n_items, size), about)


def extend_it(index: Path, source: VectorSource, collaborative: bool) -> None:
    """Give the new items of `source` identifiers, and say which.

    collaborative: the index is made of who chose what, too.
    Raises UserError if the vectors do not fit, or those of who chose what are gone.
    """
    import torch

    from genrec.identifiers.collaborative import FILE, WithCollaborative, read_vectors
    from genrec.identifiers.index import extend_index
    from genrec.identifiers.rqvae import load_rqvae

    output = index.with_suffix("")
    if collaborative:
        source = WithCollaborative(source, partial(read_vectors, output / FILE), source.about)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("\n".join(extend_index(index, load_rqvae(output / MODEL, device), source)))


def rows_to_fit(folder: Path, fit_on: str, n_items: int) -> list[int] | None:
    """The items that codebooks are fitted to; None for all. Raises UserError if the data set lacks one."""
    if fit_on == "all":
        return None
    rows = seen_items(folder)
    check_named(folder, rows[-1], n_items)
    logger.info(f"codebooks are fitted to the {len(rows)} of {n_items} items that are in training")
    return rows


def check_named(folder: Path, highest: int, n_items: int) -> None:
    """Raises UserError if items.parquet lacks the highest item of training."""
    if highest >= n_items:
        raise UserError(f"{folder}: item {highest} is in training, but items.parquet names {n_items} items alone")
