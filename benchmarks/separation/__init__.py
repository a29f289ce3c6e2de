"""The separation benchmark: does content come apart from style, and for which method?"""
