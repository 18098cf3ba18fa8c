/*
 * Shows the nuclei of the open image one by one, the most doubtful first, for a person to accept or correct.
 * A small window takes keys: 1 to 9 set a class, U Unknown, Enter or Space accept, I Ignore (the place counts for
 * nothing), Delete removes a nucleus that is none, Right skips, Backspace goes back and undoes, S saves, Esc stops.
 * Doubt is the confidence of the label, or the probability of the class, lowest first. What was seen is noted on
 * the nucleus (stqp.reviewed), so that the next review goes on where this one stopped.
 *
 * In QuPath: open an image, Automate > Project scripts > review nuclei, then Run.
 * Command line: none for the window; QuPath script review_nuclei.groovy --project=project.qpproj --args "[list,20]"
 *               prints the 20 most doubtful nuclei of each image that nobody has seen.
 * Arguments: class names: only nuclei of these; again: also those seen before; list and a number, as above.
 * QuPath 0.4 to 0.7. Changes classes, deletes nuclei, notes what was seen; saved when you ask for it.
 */

import java.time.Instant
import java.time.temporal.ChronoUnit
import javafx.geometry.Insets
import javafx.scene.Scene
import javafx.scene.control.Button
import javafx.scene.control.Label
import javafx.scene.control.ProgressBar
import javafx.scene.input.KeyCode
import javafx.scene.input.KeyEvent
import javafx.scene.layout.VBox
import javafx.stage.Stage
import javafx.stage.Window

// classes of the keys 1 to 9; empty: the visual classes, then the others of the nuclei, then those of the project
def classes = []
// pixels of the image for one on the screen; a viewer that is zoomed in further stays as it is
def zoom = 0.5d

def options = (binding.hasVariable("args") && args != null ? args as List : []).collect { it.toString().trim() }
def again = options.remove("again")
def listed = 0
if (options && options[0] == "list") {
    options.remove(0)
    listed = options ? options.remove(0) as int : 20
}
def gui = getQuPath()
if (gui == null && !listed)
    throw new UnsupportedOperationException("review_nuclei needs QuPath's window: open the project in QuPath and run it " +
            "there, or give the arguments list and a number to print the most doubtful nuclei")
def imageData = getCurrentImageData()
if (imageData == null)
    throw new IllegalStateException("review_nuclei works on an image: open one")
def hierarchy = imageData.getHierarchy()
def entry = getProjectEntry()
// metadata can be read and changed by anybody since 0.6
def since06 = PathObject.getMethods().any { it.name == "hasMetadata" }
def metadata = { since06 ? (it.hasMetadata() ? it.getMetadata() : [:]) : it.getUnmodifiableMetadataMap() }
def note = { object, key, value -> since06 ? object.getMetadata().put(key, value) : object.storeMetadataValue(key, value) }
def className = { it.getPathClass() == null || it.getPathClass() == PathClass.getNullClass() ? "" : it.getPathClass().toString() }
def regions = ["Train", "Ignore", "Region", "Ignore*", "Region*"]
def visual = ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"]

// ---- the nuclei, the most doubtful first, those without a figure last

def confidence = { object ->
    def values = object.getMeasurementList()
    def label = values.get("Label confidence")
    def known = Double.isNaN(label) ? object.getClassProbability() : label
    Double.isNaN(known) ? values.get("Probability: " + className(object)) : known
}
def nuclei = hierarchy.getAllObjects(false).findAll {
    metadata(it).get("stqp.source") != null && it.getROI() != null && !(className(it) in regions)
}
if (options)
    nuclei = nuclei.findAll { className(it) in options }
def doubt = nuclei.collectEntries { [it, confidence(it)] }
def queue = nuclei.findAll { again || !metadata(it).get("stqp.reviewed") }.toSorted { a, b ->
    Double.compare(doubt[a], doubt[b]) ?: Double.compare(a.getROI().getCentroidY(), b.getROI().getCentroidY()) ?:
        Double.compare(a.getROI().getCentroidX(), b.getROI().getCentroidX())
}
def seen = nuclei.size() - queue.size()
def image = entry?.getImageName() ?: "this image"
println "${image}: ${nuclei.size()} nuclei of stqp, ${queue.size()} to review"
if (listed) {
    queue.take(listed).each {
        println String.format(Locale.ROOT, "  %.3f  %-14s %s  at %.0f, %.0f px", doubt[it], className(it) ?: "(no class)",
            it.getName() ?: it.getID(), it.getROI().getCentroidX(), it.getROI().getCentroidY())
    }
    return
}
if (!queue)
    return

def counts = new TreeMap(nuclei.countBy { className(it) })
if (!classes)
    classes = (visual + counts.keySet() + gui.getAvailablePathClasses()*.toString()).findAll {
        it && it != "null" && it != "Unknown" && !(it in regions) && !it.endsWith("*") &&
            it != PathClass.getNullClass().toString()
    }.unique().take(9)
def user = System.getProperty("user.name") ?: "somebody"
def viewer = getCurrentViewer()

Platform.runLater {
    Window.getWindows().findAll { it instanceof Stage && it.getTitle() == "stqp: review nuclei" }.each { it.close() }
    def stage = new Stage()
    def place = new Label()
    def nucleus = new Label()
    def message = new Label("")
    def bar = new ProgressBar(0)
    def buttons = [:]
    def position = 0
    def history = []
    def unsaved = 0

    def show = {
        def done = position >= queue.size()
        place.setText(done ? "All ${nuclei.size()} nuclei are reviewed" : "${seen + position + 1} of ${nuclei.size()}")
        bar.setProgress((seen + position) / (double) nuclei.size())
        buttons.each { name, button -> button.setText("${button.getUserData()}  ${name}: ${counts[name] ?: 0}") }
        if (done) {
            nucleus.setText("S saves, Backspace goes back, Esc closes")
            hierarchy.getSelectionModel().clearSelection()
            return
        }
        def object = queue[position]
        def value = doubt[object]
        nucleus.setText((className(object) ?: "(no class)") + (Double.isNaN(value) ? "" : String.format(", confidence %.2f", value)))
        hierarchy.getSelectionModel().setSelectedObject(object)
        if (viewer.getDownsampleFactor() > zoom)
            viewer.setDownsampleFactor(zoom)
        def roi = PathObjectTools.getROI(object, true)
        viewer.setCenterPixelLocation(roi.getCentroidX(), roi.getCentroidY())
    }
    def count = { name, by -> counts.merge(name, by, Integer::sum) }
    // does something to the nucleus, remembers how to undo it, and goes on
    def act = { what, name ->
        message.setText("")
        if (viewer.getImageData() != imageData) {
            message.setText("Another image is open: close this window and run the script again")
            return
        }
        if (position >= queue.size())
            return
        def object = queue[position]
        def before = [object: object, what: what, pathClass: object.getPathClass(), probability: object.getClassProbability(),
                      reviewed: metadata(object).get("stqp.reviewed"), parent: object.getParent()]
        if (what == "delete") {
            count(className(object), -1)
            hierarchy.removeObject(object, true)
        } else if (what != "skip") {
            if (what == "class" && name != className(object)) {
                count(className(object), -1)
                count(name, 1)
                object.setPathClass(PathClass.fromString(name))
            }
            note(object, "stqp.reviewed", "${user} ${Instant.now().truncatedTo(ChronoUnit.SECONDS)}".toString())
            hierarchy.fireObjectClassificationsChangedEvent(this, [object])
        }
        if (what != "skip")
            unsaved++
        history << before
        position++
        show()
    }
    def back = {
        message.setText("")
        if (!history)
            return
        def before = history.removeLast()
        def object = before.object
        position--
        if (before.what == "delete") {
            count(className(object), 1)
            hierarchy.addObjectBelowParent(before.parent, object, true)
        } else if (before.what != "skip") {
            count(className(object), -1)
            object.setPathClass(before.pathClass, before.probability)
            count(className(object), 1)
            if (since06 && before.reviewed == null)
                object.getMetadata().remove("stqp.reviewed")
            else
                note(object, "stqp.reviewed", before.reviewed ?: "")
            hierarchy.fireObjectClassificationsChangedEvent(this, [object])
        }
        if (before.what != "skip")
            unsaved--
        show()
    }
    def save = {
        if (entry == null) {
            message.setText("The image is in no project; save it with File > Save")
            return
        }
        try {
            entry.saveImageData(imageData)
            unsaved = 0
            message.setText("Saved")
        } catch (Exception e) {
            message.setText("Not saved: ${e.getMessage()}")
        }
    }
    def stop = {
        println "${image}: ${history.count { it.what != 'skip' }} reviewed, ${nuclei.size() - seen - position} to go" +
            (unsaved ? "; not saved yet (File > Save)" : "")
        stage.close()
    }

    def button = { key, name, action ->
        def made = new Button("${key}  ${name}")
        made.setUserData(key)
        made.setFocusTraversable(false)
        made.setMaxWidth(Double.MAX_VALUE)
        made.setStyle("-fx-alignment: baseline-left; -fx-border-width: 0 0 0 8; -fx-border-color: transparent;")
        made.setOnAction { action() }
        made
    }
    classes.eachWithIndex { name, i ->
        buttons[name] = button("${i + 1}", name, { act("class", name) })
        def colour = PathClass.fromString(name).getColor() ?: 0x8c8c8c
        buttons[name].setStyle(buttons[name].getStyle().replace("transparent", String.format("#%06x", colour & 0xffffff)))
    }
    buttons["Unknown"] = button("U", "Unknown", { act("class", "Unknown") })
    buttons["Ignore"] = button("I", "Ignore", { act("class", "Ignore") })
    def accept = button("Enter", "accept", { act("accept", null) })
    def box = new VBox(4)
    box.setPadding(new Insets(8))
    bar.setMaxWidth(Double.MAX_VALUE)
    message.setWrapText(true)
    box.getChildren().addAll([place, bar, nucleus, accept] + buttons.values() + [
        button("Delete", "no nucleus", { act("delete", null) }), button("Right", "skip", { act("skip", null) }),
        button("Backspace", "back", back), button("S", "save", save), button("Esc", "stop", stop), message])
    def scene = new Scene(box, 240, -1)
    def keys = [(KeyCode.ENTER): { act("accept", null) }, (KeyCode.SPACE): { act("accept", null) },
                (KeyCode.BACK_SPACE): back, (KeyCode.LEFT): back, (KeyCode.RIGHT): { act("skip", null) },
                (KeyCode.DELETE): { act("delete", null) }, (KeyCode.U): { act("class", "Unknown") },
                (KeyCode.I): { act("class", "Ignore") }, (KeyCode.S): save, (KeyCode.ESCAPE): stop]
    scene.addEventFilter(KeyEvent.KEY_PRESSED) { event ->
        def digit = event.getCode().isDigitKey() ? event.getCode().getName()[-1] as int : 0
        if (digit > 0 && digit <= classes.size())
            act("class", classes[digit - 1])
        else if (keys.containsKey(event.getCode()))
            keys[event.getCode()]()
        event.consume()
    }
    stage.setTitle("stqp: review nuclei")
    stage.initOwner(gui.getStage())
    stage.setScene(scene)
    stage.show()
    show()
}
