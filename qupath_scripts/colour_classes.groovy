/*
 * Gives stqp's classes their colours, and hides or shows classes in the viewers.
 * Colours are those of stqp for the visual classes, Unknown, and the regions Train, Ignore and Region. Classes that
 * the project lacks are added to its list. Objects stay as they are.
 *
 * In QuPath: Automate > Project scripts > colour classes, then Run; set what to hide below.
 * Command line: QuPath script colour_classes.groovy --project=project.qpproj
 * Arguments: none for the colours alone; hide NAME ..., show NAME ..., only NAME ... (hide all others), show (all).
 *            The name stqp stands for the visual classes and Unknown, - for objects without a class.
 * QuPath 0.4 to 0.7. Hiding needs QuPath's window; colours are written into the project at once.
 */

// what to do where no arguments are given, e.g. ["hide", "Unknown"] or ["only", "Neoplastic", "Inflammatory"]
def todo = []

def colours = [
    Neoplastic  : [220, 30, 40],
    Inflammatory: [40, 170, 60],
    Connective  : [40, 90, 220],
    Dead        : [240, 200, 20],
    Epithelial  : [250, 130, 30],
    Unknown     : [140, 140, 140],
    Train       : [0, 160, 160],
    Ignore      : [90, 90, 90],
    Region      : [150, 60, 170],
]
def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
if (options)
    todo = options
if (todo && !(todo[0] in ["hide", "show", "only"]))
    throw new IllegalArgumentException("colour_classes knows hide, show and only, not ${todo[0]}")

def project = getProject()
def gui = getQuPath()
def ours = colours.collect { name, rgb ->
    def pathClass = PathClass.fromString(name)
    pathClass.setColor(*rgb)
    pathClass
}
if (gui == null) {
    if (project != null)
        project.setPathClasses(project.getPathClasses() + (ours - project.getPathClasses()))
    println "${ours.size()} classes coloured" + (project == null ? "; without a project nothing keeps that" : "")
    if (todo)
        println "${todo[0]} needs QuPath's window; there are no viewers here"
    return
}

def hierarchy = getCurrentHierarchy()
def present = hierarchy == null ? [] : hierarchy.getAllObjects(false)*.getPathClass().unique()
Platform.runLater {
    def list = gui.getAvailablePathClasses()
    list.addAll(ours - list)
    project?.setPathClasses(list) // the list is the same when only a colour is new
    if (todo) {
        def overlay = gui.getOverlayOptions()
        // since 0.6 the chosen classes may be the ones that are shown
        if (overlay.respondsTo("getSelectedClassVisibilityMode")) {
            def mode = overlay.getSelectedClassVisibilityMode().getDeclaringClass().valueOf("HIDE_SELECTED")
            if (overlay.getSelectedClassVisibilityMode() != mode) {
                overlay.selectedClassesProperty().clear()
                overlay.setSelectedClassVisibilityMode(mode)
            }
        }
        def all = (list + present + [PathClass.getNullClass()]).findAll { it != null }.unique()
        def named = todo.drop(1).collectMany {
            it == "stqp" ? ours.take(6) : [it == "-" ? PathClass.getNullClass() : PathClass.fromString(it)]
        }
        all.each { pathClass ->
            def isNamed = pathClass in named
            if (todo[0] == "only")
                overlay.setPathClassHidden(pathClass, !isNamed)
            else if (isNamed || todo.size() == 1)
                overlay.setPathClassHidden(pathClass, todo[0] == "hide")
        }
    }
    hierarchy?.fireHierarchyChangedEvent(this)
}
println "${ours.size()} classes coloured" + (todo ? "; ${todo.join(' ')}" : "")
