"""Run entries in Triton's own interpreter: ``TRITON_INTERPRET=1 python -m tests.zoo.interpreted [NAME ...]``.

One JSON object a line on stdout: the entry, and what differs from the truth, or the error it raised.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import asdict

from tests.zoo import ZOO
from tests.zoo.base import compare


def main(names: list[str]) -> None:
    """Judge the entries whose names contain one of these; without names, all that the interpreter computes rightly."""
    warnings.simplefilter("ignore")  # NumPy's, about overflow and NaN: meant
    for name, entry in ZOO.items():
        if not (any(part in name for part in names) if names else entry.interpreter):
            continue
        start = time.perf_counter()
        line: dict[str, object] = {"entry": name, "claimed": entry.interpreter}
        try:
            compared = compare(entry, entry.launch(**entry.inputs()))
            line |= {"passed": all(one.passed for one in compared.values())}
            line |= {"outputs": {output: asdict(one) for output, one in compared.items() if not one.passed}}
        except Exception as error:  # noqa: BLE001  # the interpreter fails in its own ways
            line |= {"passed": False, "error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(line | {"seconds": round(time.perf_counter() - start, 2)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
