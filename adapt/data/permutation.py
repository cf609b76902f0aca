"""Labels dealt out anew, for a control: what does a method reach that can learn nothing of real and fake?"""

import numpy as np

from adapt.data.manifest import Manifest


def permuted(rows: Manifest, number: int) -> Manifest:
    """The same images with the labels of training and validation dealt out anew; those of the test stay.

    A label is generator, family and edit together. In a group that has both classes (a photograph and its fakes) its
    images exchange their labels, so that every group keeps what it had of each. Groups of one class exchange their
    labels as a whole, within their split and set: image j of a group takes the label of image j of the other, from
    the first on again where that one is smaller. `number` alone decides: all seeds of a study see the same ones.
    """
    rng = np.random.default_rng([number, *b"labels"])
    free = np.flatnonzero(rows["split"] != "test")
    _, stratum = np.unique(
        np.char.add(np.char.add(rows["split"][free].astype(str), "\n"), rows["set"][free].astype(str)),
        return_inverse=True,
    )
    _, group = np.unique(rows["group"][free].astype(str), return_inverse=True)
    share = np.bincount(group, rows.fake[free]) / np.bincount(group)
    matched = ((share > 0) & (share < 1))[group]
    source = free.copy()
    inside = np.flatnonzero(matched)
    own = np.lexsort((inside, group[inside]))
    dealt = np.lexsort((rng.random(len(inside)), group[inside]))
    source[inside[own]] = free[inside[dealt]]
    for one in np.unique(stratum[~matched]):
        members = np.flatnonzero(~matched & (stratum == one))
        members = members[np.argsort(group[members], kind="stable")]  # group by group
        _, first, place, size = np.unique(group[members], return_index=True, return_inverse=True, return_counts=True)
        donor = rng.permutation(len(first))[place]
        rank = np.arange(len(members)) - first[place]
        source[members] = free[members[first[donor] + rank % size[donor]]]
    columns = {name: rows[name].copy() for name in ("generator", "edit", "family") if name in rows.columns}
    for name, values in columns.items():
        values[free] = rows[name][source]
    return Manifest(rows.columns | columns)
