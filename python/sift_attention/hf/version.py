"""Which transformers the package can work with; importing this refuses any other."""

import transformers

OLDEST = "4.57"


def check_version(version: str) -> None:
    """Refuse a transformers whose caches and masks cannot be followed.

    Args:
        version: as in `transformers.__version__`.

    Raises:
        ImportError: it is older than `OLDEST`.
    """
    numbers = [tuple(map(int, text.split(".")[:2])) for text in (version, OLDEST)]
    if numbers[0] < numbers[1]:
        raise ImportError(
            f"sift_attention.hf: transformers must be {OLDEST} or newer, got {version}"
        )


check_version(transformers.__version__)
