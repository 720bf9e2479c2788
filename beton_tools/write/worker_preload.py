"""Imported only by the server process that forks worker processes, so that workers start with their code loaded.

Loading compiled code from Numba's cache takes a third of a second, in which a worker encodes 300 images.
"""

from beton_tools.write.images import warm_up

warm_up()
