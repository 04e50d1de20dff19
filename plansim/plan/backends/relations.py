"""Relations between degrees that several runtimes share; they work on numbers and element-wise on arrays."""

from __future__ import annotations

from plansim.plan.backends.base import Relation

TP_DIVIDES_HEADS = Relation(
    name="tp divides heads",
    broken=lambda d: d["heads"] % d["tp"] != 0,
    message="tp {tp} does not divide {heads} heads",
    remedy="use a tp that divides {heads}",
)

TP_DIVIDES_KV_HEADS = Relation(
    name="tp divides kv heads",
    broken=lambda d: d["kv_heads"] % d["tp"] != 0,
    message="tp {tp} does not divide {kv_heads} kv heads, and this runtime does not replicate them",
    remedy="use a tp that divides {kv_heads}",
)

TP_AND_KV_HEADS_DIVIDE = Relation(
    name="tp and kv heads divide",
    broken=lambda d: (d["kv_heads"] % d["tp"] != 0) & (d["tp"] % max(d["kv_heads"], 1) != 0),
    message="tp {tp} is neither a divisor nor a multiple of {kv_heads} kv heads",
    remedy="use a tp that divides {kv_heads}, or a multiple of it",
)

SEQUENCE_SPLITS_OVER_CP = Relation(
    name="sequence splits over 2 cp",
    broken=lambda d: (d["cp"] > 1) & (d["seq_len"] % (2 * d["cp"]) != 0),
    message="seq_len {seq_len} does not split into 2 x cp {cp} parts (a head and a tail part for each rank)",
    remedy="use a seq_len that is a multiple of 2 x cp",
)

SEQUENCE_SPLITS_EVENLY_OVER_CP = Relation(
    name="sequence splits over cp",
    broken=lambda d: d["seq_len"] % d["cp"] != 0,
    message="seq_len {seq_len} does not split over cp {cp}",
    remedy="use a cp that divides {seq_len}",
)

SEQUENCE_SPLITS_OVER_TP = Relation(
    name="sequence splits over tp",
    broken=lambda d: d["sequence_parallel"] & (d["seq_len"] % (d["tp"] * d["cp"]) != 0),
    message="sequence_parallel needs seq_len {seq_len} to split over tp {tp} x cp {cp}",
    remedy="switch sequence_parallel off or use a seq_len that is a multiple of tp x cp",
)

EP_DIVIDES_EXPERTS = Relation(
    name="ep divides experts",
    broken=lambda d: (d["ep"] > 1) & ((d["experts"] == 0) | (d["experts"] % d["ep"] != 0)),
    message="ep {ep} does not divide {experts} experts",
    remedy="use an ep that divides the number of experts (1 for a dense model)",
)

EP_WITHIN_SHARD_GROUP = Relation(
    name="ep within the shard group",
    broken=lambda d: (d["ep"] > 1) & ((d["zero_group"] * d["tp"]) % d["ep"] != 0),
    message="ep {ep} does not divide the {zero_group} x tp {tp} ranks that share one copy",
    remedy="use an ep that divides zero_group x tp",
)

WHOLE_EXPERTS_NEED_EP = Relation(
    name="whole experts need ep",
    broken=lambda d: (d["etp"] < d["tp"]) & (d["ep"] == 1),
    message="etp {etp} with ep 1: without expert parallelism experts are cut by tp {tp}",
    remedy="use ep > 1, or leave etp out",
)

EXPERTS_NEED_SEQUENCE_PARALLEL = Relation(
    name="experts over tp need sequence parallel",
    broken=lambda d: (d["ep"] > 1) & (d["tp"] > 1) & (d["sequence_parallel"] == 0),
    message="ep {ep} with tp {tp} needs sequence_parallel",
    remedy="switch it on, or use ep 1 or tp 1",
)

EXPERTS_FILL_A_STAGE = Relation(
    name="experts fill what lies inside pp",
    broken=lambda d: d["ep"] * d["etp"] != d["tp"] * d["cp"],
    message="pp inside dp: experts (ep {ep} x etp {etp}) must be the tp {tp} x cp {cp} ranks of a stage",
    remedy="order the axes tp, cp, dp, pp, or use ep x etp = tp x cp",
)

INTERLEAVING_DIVIDES_MICROBATCHES = Relation(
    name="pp divides microbatches when interleaved",
    broken=lambda d: (d["pp"] > 1) & (d["virtual_stages"] > 1) & (d["num_microbatches"] % d["pp"] != 0),
    message="interleaving needs a multiple of pp {pp} microbatches, got {num_microbatches}",
    remedy="change microbatch or global_batch so that num_microbatches is a multiple of pp",
)

EVERY_CHUNK_HAS_A_LAYER = Relation(
    name="a layer in every chunk",
    broken=lambda d: (
        (d["pp"] * d["virtual_stages"] > d["layers"]) & (d["pp"] * d["virtual_stages"] != d["layers"] + 2)
    ),
    message="pp {pp} x virtual_stages {virtual_stages} chunks are more than {layers} layers",
    remedy="use fewer stages or chunks",
)
