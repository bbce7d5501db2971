"""Many seeds at once: what the trainers of `torch_impl.seeds` and `jax_impl.seeds` are given."""

from collections.abc import Sequence

import numpy as np

from recipe.plan import Plan


def stack_plans(plans: Sequence[Plan]) -> Plan:
    """The same steps of many seeds, as a plan whose images, maps and keys have the seeds as second axis.

    Rates and decays stay what they are, (S,): they must not depend on the seed.
    """
    first = plans[0]
    for plan in plans:
        assert np.array_equal(plan.rates, first.rates) and np.array_equal(plan.decays, first.decays)
    return Plan(
        images=np.stack([plan.images for plan in plans], 1),
        maps=np.stack([plan.maps for plan in plans], 1),
        keys=np.stack([plan.keys for plan in plans], 1),
        rates=first.rates,
        decays=first.decays,
    )
