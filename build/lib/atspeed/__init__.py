"""The AtSpeed method: prompts, teacher data, losses, draft training, evaluation; and recommendations with its models.

`Recommender` is imported on first use, so that `import atspeed` takes no time.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atspeed.recommend.recommender import Recommendation, Recommender

__version__ = "0.2.0"
__all__ = ["Recommendation", "Recommender"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from atspeed.recommend import recommender

    return getattr(recommender, name)
