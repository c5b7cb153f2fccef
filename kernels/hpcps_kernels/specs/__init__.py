"""Every kernel by name."""

from __future__ import annotations

from hpcps_kernels.spec import Spec
from hpcps_kernels.specs import (
    codec,
    draw,
    embedding,
    factor,
    gemm,
    gradient,
    grain,
    hash,
    index,
    layer,
    loss,
    meet,
    online,
    packed,
    reduce,
    rows,
    sketch,
    sparse,
    stream,
    summed,
    text,
    update,
)

FAMILIES = (
    codec,
    draw,
    embedding,
    factor,
    gemm,
    gradient,
    grain,
    hash,
    index,
    layer,
    loss,
    meet,
    online,
    packed,
    reduce,
    rows,
    sketch,
    sparse,
    stream,
    summed,
    text,
    update,
)

SPECS: dict[str, Spec] = {spec.name: spec for family in FAMILIES for spec in family.SPECS}
