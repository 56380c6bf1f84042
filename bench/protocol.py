"""The protocol: what must be equal for two numbers to share a column, and its fingerprint."""

from bench.cache import key_of
from bench.job import BLOCKS

PRECISION = "float32"  # of networks, unless another is asked for


def of(ask: str, data, extractor, count: int, chunk: int, dequantise: str = "none", reference=None) -> dict:
    """What decides a number besides the method: one of `count` samples, or of `count` test rows."""
    if ask != "sample":
        return of_likelihood(data, count, chunk, dequantise)
    return of_samples(data, extractor, count, chunk, reference)


def of_samples(data, extractor, samples: int, chunk: int, reference=None) -> dict:
    """What decides a metric of samples; `extractor` None where no metric needs one, `reference` None where
    samples are held against the data's own.
    """
    facts = common() | {
        "data": data.fingerprint[:16],
        "extractor": extractor and extractor.name,
        "extractor_sha256": extractor and extractor.sha256,
        "reference": "population" if data.exact is not None else "train",
        "reference_count": None if data.exact is not None else len(data.train),
        "samples": samples,
        "chunk": chunk,
    }
    if reference:
        facts |= {"reference": "imported", "reference_count": None, "reference_sha256": reference.sha256}
    return facts


def of_likelihood(data, rows: int, chunk: int, dequantise: str) -> dict:
    """What decides a likelihood besides the model."""
    return common() | {
        "data": data.fingerprint[:16],
        "split": "test",
        "rows": rows,
        "chunk": chunk,
        "dequantise": dequantise if data.levels else "none",
    }


def common() -> dict:
    import torch

    return {"blocks": BLOCKS, "precision": PRECISION, "torch": torch.__version__.split("+")[0]}


def precise(precision: str) -> dict:
    """What a precision of `bench run` changes in a protocol: nothing where it is the default."""
    return {} if precision == "fp32" else {"precision": precision}


def fingerprint(facts: dict) -> str:
    return key_of(facts, 12)


def described(name: str, facts: dict) -> str:
    """A protocol in one sentence, for a footnote; `facts` are empty where nothing is on record."""
    known = (
        ("extractor", "extractor {}"),
        ("reference", "reference: {}"),
        ("reference_count", "{:,} reference images"),
        ("reference_sha256", "moments {:.8}"),
        ("split", "{} split"),
        ("rows", "{:,} rows"),
        ("samples", "{:,} samples"),
        ("chunk", "chunks of {}"),
        ("dequantise", "dequantisation: {}"),
        ("precision", "{}"),
        ("torch", "torch {}"),
    )
    parts = [worded(text, facts[key]) for key, text in known if facts.get(key) is not None]
    return f"Protocol {name}: {', '.join(parts) or 'not on record'}."


def worded(text: str, value: object) -> str:
    """A value in its phrase; one that is not of the phrase's kind as it is."""
    try:
        return text.format(value)
    except (TypeError, ValueError):
        return f"{text.partition('{')[0]}{value}{text.partition('}')[2]}"


def difference(a: dict, b: dict) -> list[str]:
    """What two protocols disagree on, one phrase each."""
    return [
        f"{name}: {a.get(name)} and {b.get(name)}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
