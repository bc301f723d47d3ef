"""Which data made the spike?"""
