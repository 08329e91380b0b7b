"""From two exposures to their difference or score: recipe, solution, pipeline."""
