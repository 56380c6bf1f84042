"""The methods, one file each; the folder is the method's place in the taxonomy and its file's name is its
name.
"""
