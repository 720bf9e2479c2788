"""Imported by the server that forks worker processes, and by nothing else: workers begin with the compiled code at hand.

Loading it from numba's cache takes a third of a second, as long as a worker needs for 300 images.
"""

from beton_tools.images import warm_up

warm_up()
