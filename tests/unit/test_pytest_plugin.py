"""The pytest plugin, driven through pytest itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch  # noqa: F401  (compiled modules load once per process, before a run inside this one drops them)

import parity.driver  # noqa: F401
from parity.checking import check

HEADER = """
import numpy as np
import pytest

expected = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
"""


@pytest.fixture(scope="module", autouse=True)
def _kernel_is_compiled():
    check("warm", np.ones(4, np.float32), np.ones(4, np.float32))


@pytest.fixture
def run_tests(pytester: pytest.Pytester):
    """Run a test file in this process and return its result."""

    def run(body: str) -> pytest.RunResult:
        pytester.makepyfile(HEADER + body)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")

    return run


def test_equal_arrays_pass(run_tests):
    run_tests(
        "def test_it(parity): assert parity.check('q', expected, expected.copy()).exact_zero"
    ).assert_outcomes(passed=1)


def test_a_wrong_element_is_named_by_its_axes_and_counted(run_tests):
    result = run_tests(
        """
def test_it(parity):
    actual = expected.copy()
    actual[1, 2, 3] += 1
    parity.check("layer0.q", actual, expected, axes="b h d")
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*mismatched=1 of 24 (4.17 %), but should be 0 under atol=*check('layer0.q')*",
            "*worst absolute: |24.0 - 23.0| = 1 at layer0.q?b=1, h=2, d=3?*",
        ]
    )


@pytest.mark.parametrize(
    ("actual", "said"),
    [
        ("expected[:1]", "*shape=?1, 3, 4?, but should be ?2, 3, 4?*"),
        ("np.where(expected == 5, np.nan, expected)", "*NaN: 1 actual, 0 expected*"),
        ("np.where(expected == 5, np.inf, expected)", "*Inf: 1 on one side only*"),
        ("-expected", "*cosine -1.000000*"),
    ],
    ids=["shape", "nan", "inf", "sign"],
)
def test_a_difference_of_any_kind_fails_and_is_named(run_tests, actual, said):
    result = run_tests(f"def test_it(parity): parity.check('q', ({actual}).astype(np.float32), expected)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])


def test_nothing_compared_is_no_pass(run_tests):
    result = run_tests("def test_it(parity): parity.check('q', expected[:0], expected[:0])")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing compared*"])


def test_a_bound_that_is_given_replaces_the_default(run_tests):
    run_tests(
        "def test_it(parity): parity.check('q', expected + np.float32(0.5), expected, atol=0.5, rtol=0)"
    ).assert_outcomes(passed=1)


def test_the_default_bound_is_that_of_the_coarser_format(run_tests):
    run_tests(
        "def test_it(parity): parity.check('q', expected.astype(np.float16), expected)"
    ).assert_outcomes(passed=1)


def test_the_result_fixture_without_a_marker_is_an_error(run_tests):
    result = run_tests("def test_it(parity_result): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*parity_result needs @pytest.mark.parity*"])


def test_a_marked_test_runs_its_comparison_without_asking_for_it(run_tests):
    """Its body is empty; the candidate does not exist; so it must not pass."""
    result = run_tests("@pytest.mark.parity(cand=['nosuch'], weights='random:0')\ndef test_it(): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nosuch*unknown*"])


def test_a_marker_without_candidates_is_an_error(run_tests):
    result = run_tests("@pytest.mark.parity(model='klm-tiny')\ndef test_it(): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*name the candidates*"])


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("mdel='klm-tiny', cand=['onnx']", "*parity(mdel=...): unknown. Did you mean 'model'*"),
        ("cand=['segmented'], model='klm-tyni'", "*model='klm-tyni'*'klm-tiny'*"),
        ("'torch', 'onnx', 'wrap'", "*takes ref and cand by place*"),
        ("'torch', ref='torch'", "*ref=...*given twice*"),
        ("model='klm-tiny'", "*name the candidates*"),
    ],
)
def test_a_mistake_in_the_marker_is_one_sentence_without_source(run_tests, marker, said):
    result = run_tests(f"@pytest.mark.parity({marker})\ndef test_it(): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*.py:*: *Error*")
    result.stdout.no_fnmatch_line(">  *")


def test_a_marked_test_at_parity_passes_and_one_that_diverges_does_not(run_tests):
    case = "cand=['segmented'], weights='random:0', scenario='one', steps=1"
    result = run_tests(
        f"""
@pytest.mark.parity({case}, tol='fp32')
def test_near(): pass

@pytest.mark.parity({case}, tol='exact')
def test_exact(): pass
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*exit_code=1, but should be 0*"])


def test_the_marker_is_listed(pytester: pytest.Pytester):
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.parity(*"])


def test_loading_the_plugin_loads_nothing_heavy():
    code = (
        "import sys, parity.pytest_plugin\n"
        "heavy = {'torch', 'numpy', 'h5py', 'onnxruntime', 'numba', 'rich'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
