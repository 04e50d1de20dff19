"""What calibration measures is plausible, fits what it saw, and reads the files that operators have."""

import json

import pytest
from runs import GPT, LLAMA, plan

from plansim.calibrate.blocks import measure_blocks
from plansim.calibrate.collectives import CollectiveSample, fitted_lines, measure_collectives, relative_line
from plansim.calibrate.compute import measure_compute
from plansim.calibrate.nccl_tests import read_nccl_tests, with_nccl_tests
from plansim.calibrate.topology import with_topology
from plansim.errors import InputError
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.workload.model import Model

NCCL_LOG = """\
# nThread 1 nGpus 2 minBytes 1048576 maxBytes 4194304 step: 2(factor) warmup iters: 5 iters: 20
# Using devices
#  Rank  0 Group  0 Pid  1 on host device  0 [0x07] NVIDIA A100
#  Rank  1 Group  0 Pid  1 on host device  1 [0x0b] NVIDIA A100
#       size         count      type   redop    root     time   algbw   busbw #wrong
# all_reduce_perf
     1048576        262144     float     sum      -1    20.00   52.43   52.43      0
     2097152        524288     float     sum      -1    30.00   69.91   69.91      0
     4194304       1048576     float     sum      -1    50.00   83.89   83.89      0
"""

TOPO = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity
GPU0\t X \tNV12\tSYS\tSYS\t0-15
GPU1\tNV12\t X \tSYS\tSYS\t0-15
GPU2\tSYS\tSYS\t X \tNV12\t16-31
GPU3\tSYS\tSYS\tNV12\t X \t16-31
"""


def test_a_line_gives_back_its_own_points():
    samples = [
        CollectiveSample(collective="all_reduce", ranks=2, nbytes=n, wall_s=1e-3 + 2e-9 * n, cpu_s=1e-9 * n)
        for n in (1e3, 1e5, 1e7)
    ]

    (row,) = fitted_lines(samples)

    assert row["base_s"] == pytest.approx(1e-3, rel=1e-3)
    assert row["s_per_byte"] == pytest.approx(2e-9, rel=1e-3)
    assert row["cpu_base_s"] == pytest.approx(0.0, abs=1e-9)
    assert row["spread"] < 1e-6


def test_a_line_never_goes_below_zero():
    (base, slope), _ = relative_line([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])

    assert base >= 0
    assert slope >= 0


@pytest.mark.distributed
def test_collectives_cost_more_for_more_bytes():
    samples = measure_collectives((2,), sizes=(2**12, 2**23), wrapped=False)
    by = {(s.collective, s.nbytes): s.wall_s for s in samples}

    for collective in ("all_reduce", "all_gather", "broadcast"):
        assert by[collective, 2.0**23] > by[collective, 2.0**12] > 0


@pytest.mark.slow
def test_products_and_streams_are_plausible():
    found = measure_compute("cpu")

    m, n, k, seconds = found.products["fp32"][-1]
    assert 1e9 < 2 * m * n * k / seconds < 1e13
    assert 1e8 < found.streams[-1][0] / found.streams[-1][1] < 1e12
    assert 0 < found.kernel_s < found.autograd_kernel_s < 1e-2


@pytest.mark.distributed
def test_blocks_are_timed_once_for_each_shape():
    """Plans that share a block's shape share its row; a cut one has its own, with the rank's parameters."""
    given = [plan(GPT), plan(GPT, dp=2), plan(GPT, tp=2)]

    rows = measure_blocks([(GPT, p) for p in given])

    assert [(r.kind, r.wrapper) for r in rows] == [
        (kind, wrapper) for wrapper in ("plain", "dtensor") for kind in ("embedding", "layer", "head")
    ]
    layers = {r.wrapper: r for r in rows if r.kind == "layer"}
    assert all(r.forward_s > 0 and r.backward_s > 0 for r in rows)
    assert layers["plain"].kept_bytes > 16 * 2 * 16 * 32 * 4 / 2
    assert layers["dtensor"].parameters < 0.6 * layers["plain"].parameters


@pytest.mark.distributed
def test_blocks_of_a_divided_sequence_hold_their_share_of_it():
    """With cp a rank keeps half of the tokens, but all keys and values; with tp half of what is not cut."""
    given = [plan(LLAMA), plan(LLAMA, cp=2), plan(LLAMA, tp=2), plan(LLAMA, tp=2, sequence_parallel=True)]

    rows = {(r.kind, r.cp, r.tp, r.sequence_parallel): r for r in measure_blocks([(LLAMA, p) for p in given])}

    whole, context = rows["layer", 1, 1, False], rows["layer", 2, 1, False]
    cut, divided = rows["layer", 1, 2, False], rows["layer", 1, 2, True]
    assert 0.5 * whole.kept_bytes < context.kept_bytes < 0.6 * whole.kept_bytes
    assert 0.75 * cut.kept_bytes < divided.kept_bytes < 0.9 * cut.kept_bytes
    assert (context.parameters, divided.parameters) == (whole.parameters, cut.parameters)
    assert rows["head", 2, 1, False].output_bytes == rows["head", 1, 1, False].output_bytes / 2


@pytest.mark.distributed
def test_nobody_asks_for_the_gradient_of_the_data():
    """A first product of many features, few outputs: the gradient of its input would double its backward."""
    wide = Model(name="wide", family="mlp", layers=1, hidden=64, options={"features": 4096, "classes": 8})
    job = Job(global_batch=256, seq_len=1, dtype="fp32")

    first, *_ = measure_blocks(
        [(wide, Plan(model="wide", profile="", job=job, parallel=Parallel(microbatch=256)))]
    )

    assert first.batch_bytes == 256 * (4096 * 4 + 8)
    assert first.backward_peak_bytes < 0.5 * 256 * 4096 * 4 + 4 * first.parameters


@pytest.mark.distributed
def test_a_backward_pass_in_halves_owes_the_gradients_of_its_products():
    """A layer's four products put out 3, 1, 4 and 1 times its hidden size for every token, in 32 bits.

    It is measured whole too: a pipeline's first stage computes its backward pass at once.
    """
    job = Job(global_batch=8, seq_len=16, dtype="fp32")
    plan = Plan(model="gpt", profile="", job=job, parallel=Parallel(pp=2, microbatch=2, schedule="zb-h1"))

    whole, layer = (r for r in measure_blocks([(GPT, plan)]) if r.kind == "layer")

    tokens = 2 * 16
    assert (whole.split, whole.weight_s, whole.owed_bytes, layer.split) == (False, 0.0, 0.0, True)
    assert 4 * GPT.hidden * GPT.ffn <= layer.weight_peak_bytes, "one gradient at least"
    assert 9 * tokens * GPT.hidden * 4 * 0.5 < layer.owed_bytes < 9 * tokens * GPT.hidden * 4 * 2


def test_nccl_tests_give_bandwidth_and_latency(tmp_path):
    """Two ranks, 10 us + n / 104.86 GB/s: bus bandwidth equals that of the array for n = 2."""
    path = tmp_path / "nccl.txt"
    path.write_text(NCCL_LOG)

    level = with_nccl_tests(load_profile("a100x8"), [path]).fabric[0]

    assert [(run.program, run.ranks) for run in read_nccl_tests(path)] == [("all_reduce", 2)]
    assert level.bandwidth_bytes_per_s == pytest.approx(104.86e9, rel=1e-3)
    assert level.latency_s == pytest.approx(5e-6, rel=1e-3)


def gather_table(named=""):
    """Return what all_gather_perf prints on the same links: 5 us + half the bytes / 104.86 GB/s."""
    rows = []
    for n in (2**20, 2**22):
        us = 5.0 + n / 2 / 104.86e3
        cells = f"{us:.4f} {n / us / 1e3:.2f} {n / 2 / us / 1e3:.2f} 0"
        rows.append(f"  {n} {n // 4} float none -1 {cells} {cells}")
    head = NCCL_LOG.split("#       size")[0]
    return f"{named}{head}{chr(10).join(rows)}\n"


def as_json(program="all_reduce"):
    """Return the same measurements as nccl-tests -J writes them, two ranks of one process."""
    times = {2**20: 20.0, 2**21: 30.0, 2**22: 50.0}
    rows = [
        {"size": n, "count": n // 4, "type": "float", "redop": "sum", "root": "    -1",
         "out_of_place": {"time": us, "alg_bw": n / us / 1e3, "bus_bw": n / us / 1e3, "nwrong": 0.0},
         "in_place": None, "actual_iterations": 20, "experiment_name": ""}
        for n, us in times.items()
    ]  # fmt: skip
    devices = [{"rank": 0, "group": 0, "pid": 1, "hostname": "host", "device": 0, "device_info": "A100"}]
    config = {"nthreads": 1, "ngpus": 2, "devices": devices}
    args = [f"./build/{program}_perf", "-g", "2"]
    return {"version": 2, "args": args, "config": config, "results": rows}


@pytest.mark.parametrize("named", ["# Collective test starting: all_gather_perf\n", ""])
def test_several_collectives_and_files_give_one_line(tmp_path, named):
    """All messages lie on 5 us + bytes / 104.86 GB/s; a table without a name is told by its columns."""
    table, data = tmp_path / "both.txt", tmp_path / "run.json"
    table.write_text(NCCL_LOG + "# Collective test concluded: all_reduce_perf\n" + gather_table(named))
    data.write_text(json.dumps(as_json()))

    profile = with_nccl_tests(load_profile("a100x8"), [table, data])

    runs = read_nccl_tests(table)
    assert [(run.program, run.ranks, len(run.points)) for run in runs] == [
        ("all_reduce", 2, 3),
        ("all_gather", 2, 4),
    ]
    assert read_nccl_tests(data)[0] == runs[0]
    assert profile.fabric[0].bandwidth_bytes_per_s == pytest.approx(104.86e9, rel=1e-3)
    assert profile.fabric[0].latency_s == pytest.approx(5e-6, rel=1e-3)
    assert profile.calibration["nccl_tests"]["program"] == "all_reduce, all_gather"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"args": ["x"]', "not valid JSON"),
        ('{"schema": 1}', "not the JSON of nccl-tests -J"),
        (json.dumps(as_json("gather")), "unknown program of nccl-tests 'gather'"),
        (
            NCCL_LOG.replace("# all_reduce_perf\n", "").replace("83.89   83.89", "83.89   10.00"),
            "which program",
        ),
    ],
)
def test_a_file_that_is_no_run_of_nccl_tests_is_said_to_be_none(tmp_path, text, words):
    path = tmp_path / "run"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_nccl_tests(path)


def test_a_file_without_results_is_refused(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("nothing here\n")

    with pytest.raises(InputError, match="no result row"):
        read_nccl_tests(path)
    with pytest.raises(InputError, match="no GPU row"):
        with_topology(load_profile("a100x8"), path)


def test_the_joints_of_gpus_become_levels(tmp_path):
    path = tmp_path / "topo.txt"
    path.write_text(TOPO)

    profile = with_topology(load_profile("a100x8"), path)

    assert [(level.name, level.group) for level in profile.fabric] == [("nvlink", 2), ("inter-socket-1", 4)]
    assert profile.fabric[0].bandwidth_bytes_per_s == 12 * 25e9
    assert profile.devices_per_node == 4
    assert "25 GB/s for each NVLink" in profile.sources["fabric"]


@pytest.mark.parametrize(
    ("device", "links", "bytes_per_s"),
    [
        ("p100-16gb", 4, 80e9), ("v100-sxm2-32gb", 6, 150e9), ("a100-sxm4-80gb", 12, 300e9),
        ("h100-sxm5-80gb", 18, 450e9), ("b200-sxm-180gb", 18, 900e9), ("rtx-3090-24gb", 4, 56.25e9),
    ],
)  # fmt: skip
def test_an_nvlink_is_as_fast_as_its_generation(tmp_path, device, links, bytes_per_s):
    """Half of the sums that NVIDIA prints: 160, 300, 600, 900 and 1,800 GB/s; GA102: 112.5 GB/s."""
    path = tmp_path / "topo.txt"
    path.write_text(TOPO.replace("NV12", f"NV{links}"))

    profile = with_topology(load_profile("a100x8", {"device.id": device}), path)

    assert profile.fabric[0].bandwidth_bytes_per_s == bytes_per_s
