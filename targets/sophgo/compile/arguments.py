"""The command lines of the compiler's four stages, as lists of arguments: no shell, so nothing is quoted.

A pass takes its settings in one argument, apart by spaces; paths are therefore bare names in the work folder.
"""

from __future__ import annotations

from dataclasses import dataclass

Setting = str | int | float | bool


@dataclass(frozen=True)
class Files:
    """Names in a work folder, from the net's name."""

    net: str
    suffix: str

    @property
    def origin(self) -> str:
        """What the converter wrote."""
        return f"{self.net}_origin.mlir"

    @property
    def top(self) -> str:
        """Float graph, shapes inferred, canonical."""
        return f"{self.net}.mlir"

    @property
    def tpu(self) -> str:
        """Lowered to the chip's operators and number formats."""
        return f"{self.net}_tpu.mlir"

    @property
    def final(self) -> str:
        """Grouped, laid out, with addresses."""
        return f"{self.net}_final.mlir"

    @property
    def artefact(self) -> str:
        """What the chip's runtime loads."""
        return f"{self.net}{self.suffix}"


@dataclass(frozen=True)
class Lowering:
    """What decides the number formats: the compiler's words for chip and mode, tables by their bare names."""

    chip: str
    mode: str
    group_size: int = 0
    calibration: str | None = None
    qtable: str | None = None


def canonical(files: Files) -> list[str]:
    """Converter's graph -> Top."""
    passes = ["--struct-optimize", "--shape-infer", "--canonicalize", "--extra-optimize"]
    return [files.origin, *passes, "-o", files.top]


def lower(files: Files, top: str, how: Lowering) -> list[str]:
    """Top -> the chip's operators in their number formats."""
    table = {"qtable": how.qtable} if how.qtable else {}
    calibration = (
        [_pass("import-calibration-table", file=how.calibration, asymmetric=False)] if how.calibration else []
    )
    return [
        top,
        _pass(
            "processor-assign",
            chip=how.chip,
            mode=how.mode,
            num_device=1,
            num_core=1,
            addr_mode="auto",
            high_precision=False,
        ),
        *calibration,
        "--processor-top-optimize",
        _pass(
            "convert-top-to-tpu",
            **table,
            weightFileName=f"{files.net}_tpu_weights.npz",
            asymmetric=False,
            doWinograd=False,
            q_group_size=how.group_size,
            q_symmetric=False,
            matmul_perchannel=False,
            gelu_mode="normal",
        ),
        "--canonicalize",
        "--weight-fold",
        "-o",
        files.tpu,
    ]


def lay_out(files: Files) -> list[str]:
    """Group layers, order, assign addresses. Inputs and outputs of the artefact stay float32."""
    return [
        files.tpu,
        "--mlir-disable-threading",
        _pass(
            "strip-io-quant",
            quant_input=False,
            quant_output=False,
            quant_input_list="",
            quant_output_list="",
            quant_output_bf16=False,
            quant_input_int8=False,
            quant_output_int8=False,
        ),
        "--processor-tpu-optimize",
        "--dev-parallel",
        "--weight-reorder",
        _pass("subnet-divide", dynamic=False),
        "--op-reorder",
        "--topo-sort",
        _pass(
            "layer-group",
            opt=2,
            group_by_cores="auto",
            compress_mode="none",
            debugger=0,
            disable_group_overlap="false",
            lgcache="false",
            config_filename="",
            enable_lghash=False,
            lghash_dir="",
        ),
        "--affine-opt",
        "--core-parallel",
        "--after-layergroup-weight-reorder",
        "--address-assign",
        "-o",
        files.final,
        "--debug_cmd=",
    ]


def generate(files: Files) -> list[str]:
    """Final graph -> artefact."""
    return [
        files.final,
        _pass(
            "codegen",
            model_file=files.artefact,
            embed_debug_info=False,
            model_version="latest",
            bmodel_only=False,
            gdma_check=False,
            rvti=False,
        ),
        "-o",
        "/dev/null",
    ]


def _pass(name: str, /, **settings: Setting) -> str:
    return f"--{name}=" + " ".join(f"{key}={value}" for key, value in settings.items())
