"""Imported only by the server process that forks worker processes, so that workers start with compiled code loaded.

Loading it from Numba's cache takes a third of a second, as long as a worker needs for 300 images.
"""

from beton_tools.images import warm_up

warm_up()
