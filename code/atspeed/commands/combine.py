r"""One comparison of several, each of another target: means over targets and seeds of drafts, intervals over users.

    atspeed combine --output_dir output/beauty/comparison \
        --comparisons output/target-0/beauty/comparison/NAME,output/target-1/beauty/comparison/NAME

Takes folders of `atspeed compare`, and writes one like them. They must have the same users and settings.
"""

from pathlib import Path

from atspeed.benchmark.comparison import save_comparison
from atspeed.benchmark.report import short
from genrec.runtime.artefacts import is_done, new_folder, read_facts
from genrec.runtime.errors import UserError

STAGE, PART = "combine", "compare"
OWN = ("target", "drafts")  # what a comparison may have for itself


def main(comparisons: tuple[str, ...], output_dir: str, overwrite: bool = False) -> None:
    if not comparisons:
        raise UserError("--comparisons: names no folder; give those that compare.sh has written, one a target")
    folders = [Path(path) for path in comparisons]
    facts = [read_facts(folder, PART, PART) for folder in folders]
    settings = [{k: v for k, v in each["arguments"].items() if k not in OWN} for each in facts]
    for folder, each in zip(folders, settings, strict=True):
        differing = sorted(k for k in each.keys() | settings[0].keys() if each.get(k) != settings[0].get(k))
        if differing:
            raise UserError(f"{folder}: has another {differing[0]} than {folders[0]}; compare with one setting")
    targets = [each["arguments"]["target"] for each in facts]
    if len(set(targets)) < len(targets):
        raise UserError(f"--comparisons: two are of one target; give each target's once ({', '.join(comparisons)})")
    made_of = settings[0] | {name: [each["arguments"][name] for each in facts] for name in OWN}
    output = Path(output_dir) / f"{len(folders)}targets_{folders[0].name.split('_drafts-')[0]}_{short(made_of)}"
    if is_done(output, output, STAGE, made_of, overwrite):
        return

    import pandas as pd

    users = pd.concat([pd.read_parquet(folder / "users.parquet") for folder in folders], ignore_index=True)
    times = pd.concat([pd.read_parquet(folder / "times.parquet") for folder in folders])
    headline = f"{len(folders)} target{'s' * (len(folders) > 1)}; {facts[0]['headline']}"
    verdicts = "\n".join(f"{target[:8]}: {each['verdict']}" for target, each in zip(targets, facts, strict=True))
    with new_folder(output, STAGE, made_of, headline=headline) as folder:
        print(save_comparison(folder, users, times, headline, verdicts))
    print(f"written to {output}")
