"""Images without class folders (ImageNet's validation set), with labels from a separate file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from beton_tools.base.image_formats import is_image_name
from beton_tools.base.names import Names
from beton_tools.sources.base import FileSource, SpanSource
from beton_tools.sources.folder import is_folder
from beton_tools.sources.remote import SourcePath
from beton_tools.sources.tars import SpanTable, members
from beton_tools.sources.truth import find_truth
from beton_tools.sources.wnids import class_names_of


def flat_source(folder: Path, classes: Sequence[str] | None = None) -> FileSource:
    """Image files of one folder, sorted by name.

    Raises:
        UserError: no file with labels is found, or it does not match the images.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if is_image_name(e.name) and not is_folder(e))
    truth = find_truth(folder, names, classes)
    labels = np.array([truth.label_of[name] for name in names])
    class_names = class_names_of(truth.classes, folder)
    return FileSource("flat", folder, truth.classes, class_names, labels, Names.of(names))


def val_tar_source(path: SourcePath, classes: Sequence[str] | None = None) -> SpanSource:
    """ILSVRC2012_img_val.tar, images sorted by name: the same order as in its unpacked folder.

    Raises:
        UserError: a damaged archive, no file with labels, or one that does not match the images.
    """
    table = SpanTable()
    with table.open_archive(path) as file:
        files = members(file, path, left_out=table.left_out)
        images = [m for m in files if is_image_name(PurePath(m.name).name)]
    truth = find_truth(path.parent, [m.name for m in images], classes)
    for member in images:
        table.add(PurePath(member.name).name, truth.label_of[member.name], member)
    class_names = class_names_of(truth.classes, path.parent)
    return table.source("ilsvrc-tar", path, truth.classes, class_names, table.names.__getitem__)
