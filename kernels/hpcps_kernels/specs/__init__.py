"""Every kernel by name."""

from __future__ import annotations

from hpcps_kernels.spec import Spec
<<<<<<< HEAD
from hpcps_kernels.specs import (
    embedding,
    factor,
    gradient,
    index,
    layer,
    loss,
    meet,
    online,
    reduce,
    rows,
    sparse,
    text,
    update,
)

FAMILIES = (embedding, factor, gradient, index, layer, loss, meet, online, reduce, rows, sparse, text, update)
=======
from hpcps_kernels.specs import codec, gradient, meet, reduce, rows, text, update

FAMILIES = (codec, gradient, meet, reduce, rows, text, update)
>>>>>>> upd

SPECS: dict[str, Spec] = {spec.name: spec for family in FAMILIES for spec in family.SPECS}
