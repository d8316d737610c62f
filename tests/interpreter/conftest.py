"""An engine in the tests' own process, as a child sets it up."""

import pytest
import triton

from fuzzrope.interpreter.engine import Engine
from fuzzrope.run import driver
from fuzzrope.run.facade import CudaFacade

DIRECTIONS = ("load", "store", "atomic")


@pytest.fixture(scope="package")
def kinds_of():
    """Run a function with the engine in Triton's place; the kinds of what it noticed."""
    engine, facade = Engine(), CudaFacade()
    before = triton.runtime.driver._active
    driver.install()
    engine.install()
    engine.is_host, engine.fresh = facade.is_host, facade.pattern_of

    def kinds(body):
        engine.reset()
        facade.forget()
        with facade:
            body()
        return {"out_of_bounds" if a["what"] in DIRECTIONS else a["what"] for a in engine.accesses.values()}

    yield kinds
    engine.uninstall()
    triton.runtime.driver._active = before
